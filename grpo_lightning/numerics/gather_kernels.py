# mypy: disable-error-code="no-untyped-def"
# triton types a kernel's arguments itself.
"""A CUDA kernel for the gradient of gathered rows whose index was turned round once for many gathers.

torch sorts the index at every backward pass: a dozen kernels for each layer's keys, and for its values, whose index is the
same. Here it is one. ``deterministic_gather.py`` uses it where triton is installed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lightning.numerics.kernel_language import jit, tl, triton


def sum_of_rows(rows: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    """``(L, ...)``: row i is the sum of ``rows[order[starts[i]:starts[i + 1]]]``, added up in float32 in this order.

    Args:
        rows: ``(K, ...)`` on a GPU.
        order: ``(K,)`` int64.
        starts: ``(L + 1,)`` int64, ascending from 0 to K.
    """
    rows = rows.contiguous()
    count, columns = len(starts) - 1, rows[0].numel()
    sums = torch.empty(count, *rows.shape[1:], dtype=rows.dtype, device=rows.device)
    if count:
        block = triton.next_power_of_2(columns)
        _sum_kernel[(count,)](rows, order, starts, sums, columns, BLOCK=block, num_warps=max(1, min(8, block // 256)))
    return sums


@jit
def _sum_kernel(rows, order, starts, sums, columns, BLOCK: tl.constexpr):
    """One row of the result a program."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for at in range(tl.load(starts + row), tl.load(starts + row + 1)):
        source = tl.load(order + at)
        total += tl.load(rows + source * columns + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(sums + row * columns + column, total.to(sums.dtype.element_ty), mask=inside)
