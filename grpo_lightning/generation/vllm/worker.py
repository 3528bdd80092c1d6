"""What the workers of a vLLM server import (``--worker-extension-cls``), to take weights as they are sent and compute with them as training does."""

from __future__ import annotations

from grpo_lightning.generation.vllm.patches import rotate_heads_in_an_axis
from grpo_lightning.generation.vllm.weight_patches import extend_server_workers

extend_server_workers()
rotate_heads_in_an_axis()


class PolicyWorker:
    """Adds no method to vLLM's worker. Its import comes before the model's, in every process that holds a part of it."""
