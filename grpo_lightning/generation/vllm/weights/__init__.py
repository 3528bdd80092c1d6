"""The weights of the policy on their way into vLLM: under published names, with adapters added there or merged before."""
