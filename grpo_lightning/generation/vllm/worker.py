"""What the workers of a vLLM server import (``--worker-extension-cls``), to take weights as they are sent and compute with them as training does.

``weights.loading`` does the same for an engine in the process of the training.
"""

from __future__ import annotations

from grpo_lightning.generation.vllm.patches.lora import load_past_lora_layers
from grpo_lightning.generation.vllm.patches.models import compute_as_transformers
from grpo_lightning.generation.vllm.patches.reloading import load_own_layers_only, reload_whole_models

load_past_lora_layers()
load_own_layers_only()
reload_whole_models()
compute_as_transformers()


class PolicyWorker:
    """Adds no method to vLLM's worker. Its import comes before the model's, in every process that holds a part of it."""
