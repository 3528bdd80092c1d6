"""Weights that an engine on a CPU computes with in another layout, or as a copy: made anew of those that it was sent."""

from __future__ import annotations

from typing import Any

from torch import nn

from grpo_lightning.generation.vllm.compat import packs_experts_once


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
