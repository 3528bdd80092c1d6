"""Rollouts of several turns: the policy, and tools or an environment that answer it."""
