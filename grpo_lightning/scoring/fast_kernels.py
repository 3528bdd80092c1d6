"""Faster arithmetic inside the layers of the policy: Liger's fused kernels, and torch.compile.

What is left beside matrix products and attention in a training pass of a packed model is bound by memory: norms and gated
activations that read and write the same tensors many times. Both ways fuse them, which saves time and memory; how much
is in docs/performance.md. torch.compile fuses more and takes its time at the start.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from grpo_lightning.numerics.output_head import base_model, decoder_layers
from grpo_lightning.scoring.packed_attention import packed_attention

LIGER = "liger_kernel"


def liger_obstacle(device: torch.device) -> str | None:
    """Why Liger's kernels cannot be used here, and what to do about it; None if they can."""
    if device.type != "cuda":
        return f"Liger's kernels run on a GPU, and training runs on {device.type}. Leave the setting out"
    if find_spec(LIGER) is None:
        return "the package is not installed. Run pip install 'grpo-lightning[liger]', or leave the setting out"
    return None


def use_liger_kernels(model: nn.Module) -> bool:
    """Gives the norms and gated activations of a model Liger's forward passes; other models stay as they are.

    The loss and the rotary embedding keep their own code: the one has chunks of its own here, and Liger would replace the
    other for every model of the architecture in this process.

    Args:
        model: On a GPU when it runs; with adapters or not.

    Returns:
        Whether Liger knows the architecture.
    """
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    base = base_model(model)
    with _unchanged_classes(base):
        _apply_liger_kernel_to_instance(
            model=base, rope=False, cross_entropy=False, fused_linear_cross_entropy=False, layer_norm=False
        )
    return bool(fused_modules(model))


@contextmanager
def _unchanged_classes(model: PreTrainedModel) -> Iterator[None]:
    """Undoes replacements in the model's source file: models made later would have other layers than this one says."""
    names = vars(sys.modules[type(model).__module__])
    before = dict(names)
    try:
        yield
    finally:
        names.update(before)


def fused_modules(model: nn.Module) -> list[nn.Module]:
    """The modules whose forward pass is Liger's."""
    return [module for module in model.modules() if _is_fused(module)]


def _is_fused(module: nn.Module) -> bool:
    forward = module.__dict__.get("forward")
    return forward is not None and forward.__module__.split(".")[0] == LIGER


@contextmanager
def plain_kernels(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes with the code of transformers."""
    fused = [(module, module.__dict__.pop("forward")) for module in fused_modules(model)]
    try:
        yield
    finally:
        for module, forward in fused:
            module.__dict__["forward"] = forward


def remove_liger_kernels(model: nn.Module) -> None:
    """Gives all modules the code of transformers back."""
    for module in fused_modules(model):
        del module.__dict__["forward"]


def has_compiled_layers(model: nn.Module) -> bool:
    """Whether ``compile_layers`` was here."""
    return any(layer._compiled_call_impl is not None for layer in decoder_layers(model))


def compile_layers(model: nn.Module) -> None:
    """Compiles the decoder's layers in place, for any number of tokens; attention runs as it is between the parts.

    All layers share their code, so the first pass compiles one of them: half a minute, not minutes.

    Raises:
        ValueError: If the model does not say what its layers are.
    """
    layers = decoder_layers(model)
    if not layers:
        name = type(base_model(model)).__name__
        raise ValueError(f"model.torch_compile: {name} does not name its layers (_no_split_modules).")
    for name in ("sdpa", "eager"):  # its tensors have sizes and indices of their own in every micro-batch
        uncompiled = torch.compiler.disable(partial(packed_attention, name), recursive=True)
        AttentionInterface.register(f"packed_{name}", uncompiled)
    for layer in layers:
        layer.compile(dynamic=True)
