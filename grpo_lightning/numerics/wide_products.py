"""Matrix products of half-precision tensors whose result is wider: sums of many of them would lose the small ones."""

from __future__ import annotations

import torch
from torch import Tensor


def wide_product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """``left @ right``, ``(m, k)`` by ``(k, n)``, added up and returned in ``dtype``."""
    if left.dtype == dtype:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=dtype)
    with torch.autocast(left.device.type, enabled=False):
        return left.to(dtype) @ right.to(dtype)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, with the sum in the precision of ``total``."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += wide_product(left, right, total.dtype)
