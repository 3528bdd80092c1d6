"""Where this package changes how weights get into vLLM's models; each change is listed in ``patch_list.py``.

A class is changed in its process for good, or inside a ``with`` block; an engine of this process while it lives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from grpo_lightning.generation.vllm.reloading import reloading

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


def extend_server_workers() -> None:
    """What this process's workers need to take the policy's weights in every version.

    For servers, which load in calls of their own: ``reload`` and ``load_directly`` do the same for the colocated engine.
    """
    load_past_lora_layers()
    load_own_layers_only()
    reload_whole_models()


def load_own_layers_only() -> None:
    """From here on, every model of this process is given a tied head only if it has one, in files and over NCCL."""
    from vllm.model_executor.models.utils import AutoWeightsLoader

    loader_class: Any = AutoWeightsLoader
    load = loader_class.load_weights

    def load_weights(self: Any, weights: Iterable[tuple[str, Tensor]], **options: Any) -> set[str]:
        return load(self, of_own_layers(self.module, weights), **options)

    loader_class.load_weights = load_weights


def reload_whole_models() -> None:
    """From here on, every worker of this process computes with all weights that it was sent, as after its first load."""
    from vllm.v1.worker.gpu_worker import Worker

    worker_class: Any = Worker  # the CPU's inherits it
    reload_weights = worker_class.reload_weights

    def reload_whole(self: Any, *args: Any, **options: Any) -> None:
        with reloading(self.get_model()):
            reload_weights(self, *args, **options)

    worker_class.reload_weights = reload_whole


def of_own_layers(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Leaves a tied head out where the engine computes logits with the embedding: 0.32 refuses the name, 0.25 skips it."""
    has_head = any("lm_head" in name for name, _ in model.named_modules(remove_duplicate=False))
    return ((name, tensor) for name, tensor in weights if has_head or not name.startswith("lm_head."))
