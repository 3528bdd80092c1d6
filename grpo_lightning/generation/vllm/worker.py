"""What the workers of a vLLM server import (``--worker-extension-cls``), to take weights as they are sent and compute with them as training does."""

from __future__ import annotations

from grpo_lightning.generation.vllm.model_patches import compute_as_transformers
from grpo_lightning.generation.vllm.weight_patches import extend_server_workers

extend_server_workers()
compute_as_transformers()


class PolicyWorker:
    """Adds no method to vLLM's worker. Its import comes before the model's, in every process that holds a part of it."""
