"""What the workers of a vLLM server with adapters import (``--worker-extension-cls``): the base finds its way past them."""

from __future__ import annotations

from grpo_lightning.generation.vllm_compat import load_past_lora_layers

load_past_lora_layers()


class PolicyWorker:
    """Adds no method to vLLM's worker. Its import comes before the model's, in every process that holds a part of it."""
