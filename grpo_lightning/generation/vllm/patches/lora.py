"""Adapters in vLLM: given in memory, and no obstacle to the weights of their base; ``patch_list.py`` lists what is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

EXPERT_PREFIX = "lora_base_layer_prefix"
"""Of the experts of a mixture: what a LoRA layer around them adds to the names that they load under."""


@contextmanager
def past_lora_layers(model: nn.Module) -> Iterator[None]:
    """Inside, the model is as it was when it was loaded: without the LoRA layers around its own.

    A checkpoint's names lead to the model's own layers. vLLM 0.25 does not follow them through a LoRA layer; 0.32 does,
    but in models that look their parameters up by whole names, and in mixtures.

    Args:
        model: The engine's; one without LoRA layers is left alone.
    """
    if getattr(model, "lora_manager", None) is None:
        yield
        return
    from vllm.lora.layers import BaseLayerWithLoRA

    around = [
        (parent, name, layer)
        for parent in list(model.modules())
        for name, layer in parent._modules.items()
        if isinstance(layer, BaseLayerWithLoRA)
    ]
    for parent, name, layer in around:
        setattr(parent, name, layer.base_layer)
    # Experts with a LoRA layer around them want "base_layer." in the names of a checkpoint.
    prefixes = [(layer, getattr(layer, EXPERT_PREFIX)) for layer in model.modules() if hasattr(layer, EXPERT_PREFIX)]
    for experts, _ in prefixes:
        setattr(experts, EXPERT_PREFIX, "")
    try:
        yield
    finally:
        for experts, prefix in prefixes:
            setattr(experts, EXPERT_PREFIX, prefix)
        for parent, name, layer in around:
            setattr(parent, name, layer)


def load_past_lora_layers() -> None:
    """From here on, every model of this process that gets LoRA layers takes the weights of its base nevertheless.

    For servers, which load in calls of their own. Does nothing where vLLM's own LoRA layers hand weights on.
    """
    from vllm.lora.layers import BaseLayerWithLoRA
    from vllm.lora.model_manager import LoRAModelManager

    if hasattr(BaseLayerWithLoRA, "load_weights"):
        return
    manager_class: Any = LoRAModelManager
    put_lora_layers = manager_class.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        put_lora_layers(self, *args, **kwargs)
        model, load = self.model, self.model.load_weights

        def load_weights(weights: Iterable[tuple[str, Tensor]]) -> None:
            with past_lora_layers(model):
                load(weights)

        model.load_weights = load_weights

    manager_class.__init__ = init


@contextmanager
def reading_adapters_from(matrices: dict[str, Tensor]) -> Iterator[None]:
    """Inside, engines of this process take these matrices for the content of an adapter's file.

    vLLM reads a file tensor by tensor and copies each into page-locked memory; these stay on the device that they are on.
    What vLLM checks of a file is not checked: give it one of the same names first.
    """
    from vllm.lora.lora_model import LoRAModel

    model_class: Any = LoRAModel
    read = model_class.__dict__["from_local_checkpoint"]
    passed_on = ("lora_model_id", "dtype", "model_vocab_size", "weights_mapper", "skip_prefixes")

    def take(cls: Any, directory: str, expected: set[str], peft_helper: Any, **options: Any) -> Any:
        device = next(iter(matrices.values())).device
        further = {name: value for name, value in options.items() if name in passed_on}
        return cls.from_lora_tensors(tensors=matrices, peft_helper=peft_helper, device=device, **further)

    model_class.from_local_checkpoint = classmethod(take)
    try:
        yield
    finally:
        model_class.from_local_checkpoint = read
