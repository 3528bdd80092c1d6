"""Which numbers a policy is held in, and what of it stays in float32 whatever that is."""

from __future__ import annotations

import torch
from torch import nn

from grpo_lightning.numerics.dtypes import DTYPES

TRAINER_DTYPES = {
    "32-true": torch.float32,
    "bf16-mixed": torch.float32,
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
}
"""What weights are loaded in, by the values of ``trainer.precision`` that train."""
SPELLINGS = {"32": "32-true", "bf16": "bf16-mixed"}
"""Older names of the same values, which Lightning's Trainer takes too, and a run's config.yaml may hold."""


def known_precision(precision: str | int) -> str:
    """``trainer.precision`` of a config, as the Trainer calls it.

    Raises:
        ValueError: If nothing is trained in it.

    Example:
        >>> known_precision(32), known_precision("bf16"), known_precision("bf16-true")
        ('32-true', 'bf16-mixed', 'bf16-true')
    """
    found = SPELLINGS.get(str(precision), str(precision))
    if found not in TRAINER_DTYPES:
        raise ValueError(f"trainer.precision={precision} is not supported. Use {', '.join(TRAINER_DTYPES)}.")
    return found


def weights_dtype(dtype: str, precision: str, is_frozen: bool = False) -> torch.dtype:
    """The dtype that weights are loaded in: as named, or for ``auto`` what ``trainer.precision`` computes with.

    A checkpoint stored in bfloat16 is loaded in float32 under 32-bit and mixed precision: small updates (lr 1e-6) would
    be rounded away in bfloat16 weights. Frozen weights see no updates and are held as mixed precision computes.

    Example:
        >>> weights_dtype("auto", "bf16-mixed"), weights_dtype("auto", "bf16-true")
        (torch.float32, torch.bfloat16)
        >>> weights_dtype("auto", "bf16-mixed", is_frozen=True)
        torch.bfloat16
    """
    if dtype == "auto":
        if is_frozen and precision == "bf16-mixed":
            return torch.bfloat16
        return TRAINER_DTYPES[precision]
    if dtype not in DTYPES:
        raise ValueError(f"model.dtype={dtype!r} is unknown. Choose auto, {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def hold_trained_weights(policy: nn.Module, dtype: torch.dtype) -> None:
    """Puts what is trained into a dtype, in place, before weights are sharded."""
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Puts a model's weights, sharded ones too, into another dtype, in place, as ``from_pretrained`` would have loaded them.

    Not ``model.to(dtype)``, which casts what models keep in float32 as well: buffers, such as rotary frequencies and the
    biases of routers, and weights that the model names itself.
    """
    names = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    named = [tensor for name, tensor in model.named_parameters() if any(part in name for part in names)]
    kept = {id(tensor) for tensor in (*model.buffers(), *named)}
    # As model.to does it: FSDP takes note of new weights there.
    model._apply(lambda t: t.to(dtype) if t.is_floating_point() and id(t) not in kept else t)
