"""Rows of a tensor by index, with a gradient that is the same every time it is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rows_at(tensor: Tensor, index: Tensor) -> Tensor:
    """``tensor[index]``: rows of ``(L, ...)`` at an index of any shape, some of them more than once.

    On a CPU torch adds float32 gradients of a repeated row up in the order in which its threads come, so that two runs
    of the same config drift apart by rounding. Elsewhere, and in other precisions, its order is fixed.
    """
    if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
        return tensor[index]
    gathered: Tensor = _RowsAt.apply(tensor, index)
    return gathered


class _RowsAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = tensor.shape
        return tensor[index]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        total = gradient.new_zeros(ctx.size, dtype=torch.float64)  # which torch adds up one row after the other
        total.index_put_((index,), gradient.double(), accumulate=True)
        return total.to(gradient.dtype), None
