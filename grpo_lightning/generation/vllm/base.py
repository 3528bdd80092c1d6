"""What both generators on vLLM do alike."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from grpo_lightning.generation.base import Generator
from grpo_lightning.generation.vllm.models import refuse_own_head
from grpo_lightning.generation.vllm.weights.adapter_route import AdapterRoute


class VLLMGenerator(Generator):
    """A generator whose engine is vLLM: it may be shown images, and gets adapters by a route that checkpoints keep.

    Args:
        adapter_route: To the engine.
    """

    def __init__(self, adapter_route: AdapterRoute) -> None:
        self.adapter_route = adapter_route

    def check_model(self, config: PretrainedConfig) -> None:
        """See ``Generator.check_model``."""
        refuse_own_head(type(self).__name__, config)

    def state_dict(self) -> dict[str, Any]:
        """What ``lora_sync: auto`` has chosen."""
        return self.adapter_route.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keeps to the choice of the run before."""
        self.adapter_route.load_state_dict(state)
