"""Rows of a tensor by index, with a gradient that is the same every time it is computed, and sums that are."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from grpo_lightning.numerics import gather_kernels, kernel_language


class Inverse(NamedTuple):
    """An index turned round: for each row that it reads from, the places that it reads it for."""

    order: Tensor
    """(K,) int64: the places, those of row 0 first."""
    starts: Tensor
    """(L + 1,) int64: where the places of a row start in ``order``."""


def inverse_of(index: Tensor, rows: int) -> Inverse | None:
    """The inverse of a ``(K,)`` index into so many rows, for ``rows_at``; None where no kernel uses it."""
    if not index.is_cuda or not kernel_language.AVAILABLE:
        return None
    ascending, order = index.sort(stable=True)
    return Inverse(order, torch.searchsorted(ascending, torch.arange(rows + 1, device=index.device)))


def rows_at(tensor: Tensor, index: Tensor, inverse: Inverse | None = None) -> Tensor:
    """``tensor[index]``: rows of ``(L, ...)`` at an index of any shape, some of them more than once.

    On a CPU torch adds float32 gradients of a repeated row up in the order in which its threads come, so that two runs
    of the same config drift apart by rounding. Elsewhere, and in other precisions, its order is fixed.

    Args:
        tensor: ``(L, ...)``.
        index: int64.
        inverse: Of a ``(K,)`` index that is used many times, see ``inverse_of``: the gradient is faster then.
    """
    if inverse is not None and tensor.dtype != torch.float64:
        turned: Tensor = _RowsAtInverse.apply(tensor, index, *inverse)
        return turned
    if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
        return tensor[index]
    gathered: Tensor = _RowsAt.apply(tensor, index)
    return gathered


def sums_at(values: Tensor, index: Tensor, size: int) -> Tensor:
    """``(size,)``: sums of the ``(T,)`` values that have the same ``(T,)`` int64 index; 0 where none has it.

    ``index_add`` adds up on a GPU in the order in which its threads come, so that two runs of the same config drift apart by
    rounding. ``index_put`` sorts there.
    """
    zeros = values.new_zeros(size)
    return zeros.index_put((index,), values, accumulate=True) if values.is_cuda else zeros.index_add(0, index, values)


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


class _RowsAtInverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, index: Tensor, order: Tensor, starts: Tensor) -> Tensor:
        ctx.save_for_backward(order, starts)
        return tensor[index]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gather_kernels.sum_of_rows(gradient, *ctx.saved_tensors), None, None, None
