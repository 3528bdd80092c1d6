"""Faster arithmetic inside the layers of the policy: Liger's fused kernels, and torch.compile.

What is left beside matrix products and attention in a training pass of a packed model is bound by memory: norms, rotary
embeddings, gated activations and casts that read and write the same tensors many times. Both ways fuse them, which saves
time and memory; how much is in docs/performance.md. torch.compile fuses more and takes its time at the start.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import FunctionType, MethodType
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from grpo_lightning.numerics.output_head import base_model, decoder_layers
from grpo_lightning.scoring import norms
from grpo_lightning.scoring.kept_graphs import leave_saved
from grpo_lightning.scoring.norms import NORMS_FEED_LINEAR_LAYERS, allow_variants, compile_norms

LIGER = "liger_kernel"


def liger_obstacle(device: torch.device) -> str | None:
    """Why Liger's kernels cannot be used here, and what to do about it; None if they can."""
    if device.type != "cuda":
        return f"Liger's kernels run on a GPU, and training runs on {device.type}. Leave the setting out"
    if find_spec(LIGER) is None:
        return "the package is not installed. Run pip install 'grpo-lightning[liger]', or leave the setting out"
    return None


def use_liger_kernels(model: nn.Module) -> bool:
    """Gives norms, gated activations and rotary embeddings of a model Liger's code; other models stay as they are.

    The loss keeps its own code, which has chunks of its own here, and the norms in front of linear layers are compiled
    where the architecture is known to have nothing else behind them.

    Args:
        model: On a GPU when it runs; with adapters or not.

    Returns:
        Whether Liger knows the architecture.
    """
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    base = base_model(model)
    options = {"cross_entropy": False, "fused_linear_cross_entropy": False, "layer_norm": False}
    with replaced_in_this_model_alone(base):
        try:
            _apply_liger_kernel_to_instance(model=base, rope=True, **options)
        except NotImplementedError:  # of an architecture whose rotary embedding Liger does not have
            _apply_liger_kernel_to_instance(model=base, rope=False, **options)
    for module in fused_modules(model):
        if isinstance(
            module, BaseTunerLayer
        ):  # Liger's code reads the frozen weight, and not what is trained beside it
            del module.__dict__["forward"]
    leave_saved(fused_modules(model))
    is_known = bool(fused_modules(model))
    if is_known and base.config.get_text_config().model_type in NORMS_FEED_LINEAR_LAYERS:
        compile_norms(base)
    return is_known


@contextmanager
def replaced_in_this_model_alone(model: nn.Module) -> Iterator[None]:
    """Undoes replacements in the source files of transformers, whose other models would have other layers than they say.

    Functions that were replaced there, which are rotary embeddings, become those of this model's modules.
    """
    files = [
        vars(module)
        for name, module in list(sys.modules.items())
        if name.startswith("transformers.models.") and "modeling_" in name
    ]
    before = [dict(names) for names in files]
    try:
        yield
    finally:
        replaced = {}
        for names, old in zip(files, before, strict=True):
            replaced[id(names)] = {
                name: _on_copies(new)
                for name, new in names.items()
                if isinstance(new, FunctionType) and isinstance(old.get(name), FunctionType) and new is not old[name]
            }
            names.update(old)
        for module in model.modules():
            _call_instead(module, replaced)


def _on_copies(rotate: Callable[..., Any]) -> Callable[..., Any]:
    """A rotary embedding that leaves its arguments alone: Liger's turns queries and keys in place, unseen by torch.

    Selective checkpointing keeps the outputs of linear layers, and would turn them a second time.
    """

    def rotated(queries: Tensor, keys: Tensor, *args: Any, **kwargs: Any) -> Any:
        return rotate(queries.clone(), keys.clone(), *args, **kwargs)

    return rotated


def _call_instead(module: nn.Module, replaced: dict[int, dict[str, Callable[..., Any]]]) -> None:
    """Gives a module its class's forward pass with the functions that replace others of its source file, by that file's id."""
    forward = type(module).forward
    if "forward" in vars(module) or not isinstance(forward, FunctionType):
        return
    functions = replaced.get(id(forward.__globals__), {})
    if functions.keys() & set(forward.__code__.co_names):
        names = forward.__globals__ | functions
        copied = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
        copied.__kwdefaults__ = forward.__kwdefaults__
        copied.__module__ = __name__
        module.__dict__["forward"] = MethodType(copied, module)


def fused_modules(model: nn.Module) -> list[nn.Module]:
    """The modules whose forward pass is Liger's, or compiled with them."""
    return [module for module in model.modules() if _is_fused(module)]


def _is_fused(module: nn.Module) -> bool:
    forward = module.__dict__.get("forward")
    if forward is None:
        return False
    return forward.__module__ in (__name__, norms.__name__) or forward.__module__.split(".")[0] == LIGER


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


@contextmanager
def uncompiled_layers(model: nn.Module) -> Iterator[None]:
    """Inside, layers run as they are: torch would compile them once more for every form that only a probe has, or sampling."""
    compiled = [(layer, layer._compiled_call_impl) for layer in decoder_layers(model)]
    for layer, _ in compiled:
        layer._compiled_call_impl = None
    try:
        yield
    finally:
        for layer, call in compiled:
            layer._compiled_call_impl = call


def compile_layers(model: nn.Module) -> None:
    """Compiles the decoder's layers in place, for any number of tokens, each with its attention where that is one flash kernel.

    All layers share their code, so the first pass compiles one of them: half a minute, not minutes.

    Raises:
        ValueError: If the model does not say what its layers are.
    """
    layers = decoder_layers(model)
    if not layers:
        name = type(base_model(model)).__name__
        raise ValueError(f"model.torch_compile: {name} does not name its layers (_no_split_modules).")
    allow_variants()
    for layer in layers:
        layer.compile(dynamic=True)
