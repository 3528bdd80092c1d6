"""How weights get into the model of an engine; runs in its workers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from grpo_lightning.generation.vllm.patches.lora import past_lora_layers
from grpo_lightning.generation.vllm.patches.reloading import of_own_layers, reloading


def load_directly(worker: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    """The model's own ``load_weights``, straight into the tensors that it computes with; runs in a worker."""
    model = worker.get_model()
    with past_lora_layers(model):
        model.load_weights(of_own_layers(model, weights))
    forget_adapters(model)


def reload(worker: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    """The reload of vLLM itself, which repacks the weights of each layer; runs in a worker."""
    model = worker.get_model()
    with past_lora_layers(model), reloading(model):
        worker.reload_weights(weights_iterator=of_own_layers(model, weights))
    forget_adapters(model)


def forget_adapters(model: nn.Module) -> None:
    """Drops adapters and what was prepared for them: sleep of level 2 takes it together with the base.

    From 0.32 on ``reload_weights`` does this; nothing else does, in any version.
    """
    manager: Any = getattr(model, "lora_manager", None)
    if manager is None:
        return
    manager.remove_all_adapters()
    manager._last_mapping = None  # of requests to adapters: an equal one would not be written to the device again
    for layer in manager.modules.values():
        order = getattr(layer, "sharded_to_full_mapping_gpu", None)  # of the logits of tensor-parallel ranks
        if order is not None:
            order.copy_(torch.tensor(layer.sharded_to_full_mapping))
