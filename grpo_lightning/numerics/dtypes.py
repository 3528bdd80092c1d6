"""The dtypes that a config names, those that products and sums run in, and float32 as the default one while a step runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""By the names that settings have for them."""


def autocast_dtype(value: Tensor) -> torch.dtype | None:
    """What autocast casts a value to in front of a product; None outside of it, and for float64, which it leaves alone."""
    device = value.device.type
    is_cast = torch.is_autocast_enabled(device) and value.dtype != torch.float64
    return torch.get_autocast_dtype(device) if is_cast else None


def at_least_float32(value: Tensor) -> Tensor:
    """The value in float32, or as it is in float64: what softmax and sums over tokens are computed in."""
    return value if value.dtype == torch.float64 else value.float()


def with_float32_defaults(step: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Runs a step with float32 as torch's default dtype, whatever it is outside.

    Under ``trainer.precision=bf16-true`` Lightning makes bfloat16 the default inside every step. The weights are
    bfloat16 because they were loaded so; rewards, advantages, logprobs and counts must not be: 257 is no bfloat16
    number.

    Example:
        >>> torch.set_default_dtype(torch.bfloat16)
        >>> with_float32_defaults(lambda: torch.zeros(1).dtype)()
        torch.float32
        >>> torch.zeros(1).dtype
        torch.bfloat16
        >>> torch.set_default_dtype(torch.float32)
    """

    @wraps(step)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        outside = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            return step(*args, **kwargs)
        finally:
            torch.set_default_dtype(outside)

    return wrapped
