"""Prompts as requests to vLLM, and what it answers, as rollouts: the same for an engine and a server."""
