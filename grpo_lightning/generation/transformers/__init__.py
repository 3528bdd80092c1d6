"""Sampling with the policy itself, where vLLM is not installed."""
