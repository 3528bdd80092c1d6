"""What of a policy is trained: settings, adapters on their frozen base, 4-bit weights, new tokens."""
