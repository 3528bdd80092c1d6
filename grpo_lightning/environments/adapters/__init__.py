"""Environments and tools of other libraries, each an extra of its own: `pip install grpo-lightning[openenv]`, ..."""
