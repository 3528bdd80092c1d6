"""Which activations a training pass keeps for its backward pass, and which it computes again."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

Checkpointing = bool | float | Literal["selective"]
"""``model.gradient_checkpointing``; see ``enable_checkpointing``."""

MATRIX_PRODUCTS = ("aten::mm", "aten::addmm", "aten::_grouped_mm")
"""Of linear layers. Not bmm: written-out attention has its scores from it, which grow with the square of the length."""
ATTENTION_KERNELS = ("scaled_dot_product", "flash_attention_forward", "efficient_attention_forward", "varlen_attn")
"""Parts of the names of fused attention kernels, whose output is as long as their queries."""


def check_checkpointing(setting: Checkpointing, torch_compile: bool = False) -> None:
    """Refuses what ``enable_checkpointing`` cannot do.

    Raises:
        ValueError: Naming the setting.
    """
    if setting == "selective":
        if torch_compile:
            raise ValueError(
                "model.gradient_checkpointing=selective has no effect with model.torch_compile=true: compiled layers already "
                "compute again what is cheap. Leave it out, or use true or a share of the layers."
            )
        return
    # A config checks types; whoever builds the module in Python may give any text.
    if isinstance(setting, str) or not 0 <= setting <= 1:  # type: ignore[unreachable]
        raise ValueError(
            f"model.gradient_checkpointing={setting!r} is neither true, false, selective nor a share of the layers "
            "between 0 and 1, such as 0.5."
        )


def enable_checkpointing(model: PreTrainedModel, setting: Checkpointing) -> None:
    """Makes training passes keep less and compute it again in the backward pass. The gradient stays the same.

    Args:
        model: Before adapters and sharding.
        setting: True or 1.0: each decoder layer keeps its input alone and runs a second time. A share: so many of the
            layers, evenly spread. ``selective``: each layer keeps the outputs of its matrix products and of attention;
            norms, activation functions, rotations and sums, which take little time and much memory, run again.
    """
    if not setting:
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if setting == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_the_expensive)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    if setting in (True, "selective"):
        return
    assert isinstance(setting, float | int)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"model.gradient_checkpointing={setting}: {type(model).__name__} does not recompute layer by layer. "
            "Use true or false."
        )
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = is_recomputed(number, setting)


def is_recomputed(number: int, share: float) -> bool:
    """Whether layer ``number``, counted from 0, is among an evenly spread share of the layers.

    Example:
        >>> [is_recomputed(number, 0.5) for number in range(4)], [is_recomputed(number, 0.25) for number in range(4)]
        ([False, True, False, True], [False, False, False, True])
    """
    return int((number + 1) * share + 1e-9) > int(number * share + 1e-9)


def _keep_the_expensive(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = operation.name()
    if name in MATRIX_PRODUCTS or any(kernel in name for kernel in ATTENTION_KERNELS):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
