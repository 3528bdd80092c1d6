"""What the workers of a vLLM server import (``--worker-extension-cls``), to take weights as they are sent."""

from __future__ import annotations

from grpo_lightning.generation.vllm.patches import extend_server_workers

extend_server_workers()


class PolicyWorker:
    """Adds no method to vLLM's worker. Its import comes before the model's, in every process that holds a part of it."""
