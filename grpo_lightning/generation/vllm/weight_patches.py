"""Where this package changes how weights get into vLLM's models; each change is listed in ``patch_list.py``.

A class is changed in its process for good, or inside a ``with`` block; an engine of this process while it lives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from grpo_lightning.generation.vllm.compat import packs_experts_once
from grpo_lightning.generation.vllm.repacking import pack_experts, repack_tied_heads

COPIED = {"GptOssForCausalLM": (".experts.", ".sinks")}
"""By class of vLLM: parts of the names of weights that its ``load_weights`` copies into its tensors without their loaders."""
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
    repack_tied_heads_after_reloads()


def load_own_layers_only() -> None:
    """From here on, every model of this process is given a tied head only if it has one, in files and over NCCL."""
    from vllm.model_executor.models.utils import AutoWeightsLoader

    loader_class: Any = AutoWeightsLoader
    load = loader_class.load_weights

    def load_weights(self: Any, weights: Iterable[tuple[str, Tensor]], **options: Any) -> set[str]:
        return load(self, of_own_layers(self.module, weights), **options)

    loader_class.load_weights = load_weights


def repack_tied_heads_after_reloads() -> None:
    """From here on, every worker of this process computes with the tied head that it was sent."""
    from vllm.v1.worker.gpu_worker import Worker

    worker_class: Any = Worker  # the CPU's inherits it
    reload_weights = worker_class.reload_weights

    def reload_and_repack(self: Any, *args: Any, **options: Any) -> None:
        with copying_after_reload(self.get_model()), packing_experts():
            reload_weights(self, *args, **options)
        repack_tied_heads(self.get_model())

    worker_class.reload_weights = reload_and_repack


@contextmanager
def copying_after_reload(model: nn.Module) -> Iterator[None]:
    """Around a reload: weights of ``COPIED`` wait for its end, and are copied then into what the model computes with.

    A reload gives a model empty tensors, and fills those whose loaders were called: a plain copy would be lost. Experts
    that came so are packed at its end, which ``packing_experts`` is too early for.
    """
    names, waiting = COPIED.get(type(model).__name__, ()), list[tuple[str, Tensor]]()
    if not names:
        yield
        return
    loader: Any = model
    load = loader.load_weights

    def others(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            if any(part in name for part in names):
                waiting.append((name, tensor))
            else:
                yield name, tensor

    loader.load_weights = lambda weights: load(others(weights))
    try:
        yield
    finally:
        loader.load_weights = load
    load(waiting)
    for layer in model.modules():
        pack_experts(layer)


@contextmanager
def packing_experts() -> Iterator[None]:
    """Inside, a reload packs experts for their CPU kernel as the first load did.

    0.32 packs them at the first load only. Later it copies plain weights to where the kernel reads packed ones, and fails at
    sizes that packing pads: those that 32 does not divide.
    """
    if not packs_experts_once():
        yield
        return
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    method_class: Any = UnquantizedFusedMoEMethod
    process = method_class.process_weights_after_loading

    def process_and_pack(self: Any, layer: nn.Module) -> None:
        is_reload = self.moe_kernel is not None
        process(self, layer)
        if is_reload:
            pack_experts(layer)

    method_class.process_weights_after_loading = process_and_pack
    try:
        yield
    finally:
        method_class.process_weights_after_loading = process


def of_own_layers(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Leaves a tied head out where the engine computes logits with the embedding: 0.32 refuses the name, 0.25 skips it."""
    has_head = any("lm_head" in name for name, _ in model.named_modules(remove_duplicate=False))
    return ((name, tensor) for name, tensor in weights if has_head or not name.startswith("lm_head."))
