"""What vLLM leaves undone when weights come again: tied heads, and those that it computes with as a copy or in another layout.

Each change is listed in ``patch_list.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from grpo_lightning.generation.vllm.compat import packs_experts_once

COPIED = {"GptOssForCausalLM": (".experts.", ".sinks")}
"""By class of vLLM: parts of the names of weights that its ``load_weights`` copies into its tensors without their loaders."""


@contextmanager
def reloading(model: nn.Module) -> Iterator[None]:
    """Around ``reload_weights``: behind it the model computes with all that it was sent, as after its first load.

    Args:
        model: The engine's, in a worker.
    """
    with copying_after_reload(model), packing_experts():
        yield
    repack_tied_heads(model)


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


def repack_tied_heads(model: nn.Module) -> None:
    """0.25 leaves a tied head out of a reload, since it has the weight already; on a CPU it computes with a copy."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    embeddings = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
    for head in embeddings:
        if isinstance(head, ParallelLMHead) and any(head.weight is e.weight for e in embeddings if e is not head):
            head.quant_method.process_weights_after_loading(head)


def pack_experts(layer: nn.Module) -> None:
    """Packs a layer's plain weights, if they are experts, and vLLM would not do it again."""
    kernel: Any = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
    name = "" if kernel is None else type(kernel.fused_experts).__name__
    if "CPUUnquantizedExperts" in name and packs_experts_once():
        kernel.fused_experts.process_weights_after_loading(layer)


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
