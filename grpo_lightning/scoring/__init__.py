"""A model and rollouts -> logprobs: one path for policy, old policy and reference."""
