"""Inputs of LoRA layers under autocast: cast once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


def leave_casts_to_autocast(policy: nn.Module) -> None:
    """Spares LoRA layers two copies of their input in every pass under autocast.

    Their matrices are float32, for the optimizer; so peft makes a float32 copy of a bfloat16 input, of which autocast makes
    a bfloat16 one again, to be kept for the backward pass, by each of the layers that share the input. The numbers are
    the same without. Layers on 4-bit weights do without by themselves; DoRA takes norms in the copy's dtype, and keeps it.
    """
    for layer in policy.modules():
        if isinstance(layer, LoraLayer) and not layer.lora_variant:
            cast: Any = layer._cast_input_dtype
            layer._cast_input_dtype = partial(_cast_outside_autocast, cast)


def _cast_outside_autocast(cast: Callable[..., Any], x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    is_left = x is not None and torch.is_autocast_enabled(x.device.type)
    return x if is_left else cast(x, dtype)
