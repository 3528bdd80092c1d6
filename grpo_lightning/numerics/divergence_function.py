"""Divergence of a student whose head is one matrix, a slice of tokens at a time, with a backward pass of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from grpo_lightning.numerics import divergence_formulas, divergence_kernels
from grpo_lightning.numerics.divergence_formulas import Divergence, Statistics
from grpo_lightning.numerics.head_gradients import HeadGradients
from grpo_lightning.numerics.logit_transform import LogitTransform
from grpo_lightning.numerics.logprobs import is_fused


def divergence_of_matrix(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher: Callable[[slice], Tensor],
    transforms: tuple[LogitTransform, LogitTransform],
    kind: Divergence,
    chunk: int,
) -> Tensor:
    """``(T,)`` nats; gradient reaches ``hidden``, ``weight`` and ``bias``.

    Args:
        hidden: ``(T, H)``, in the dtype of the product.
        weight: ``(V, H)``.
        bias: ``(V,)``.
        teacher: ``(n, V)`` raw logits of these tokens, asked for in the forward and in the backward pass.
        transforms: From raw logits to those that are sampled from, of the student and of the teacher.
        kind: Which divergence.
        chunk: Tokens whose logits exist at the same time.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        found: Tensor = _Divergence.apply(hidden, weight, bias, teacher, transforms, kind, chunk)
    return found


class _Divergence(torch.autograd.Function):
    """Keeps four numbers per token, and computes each chunk's logits again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher: Callable[[slice], Tensor],
        transforms: tuple[LogitTransform, LogitTransform],
        kind: Divergence,
        chunk: int,
    ) -> Tensor:
        ctx.held_in = weight.dtype  # a float32 matrix under autocast: its gradient is not rounded on the way
        weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        statistics = hidden.new_empty(4, len(hidden), dtype=dtype)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            raw = nn.functional.linear(hidden[part], weight, bias)
            of_chunk = _way(raw).divergence_statistics(raw, teacher(part).to(raw.device), transforms, kind)
            statistics[:, part] = torch.stack(of_chunk)
        ctx.save_for_backward(hidden, weight, bias, statistics)
        ctx.teacher, ctx.transforms, ctx.kind, ctx.chunk = teacher, transforms, kind, chunk
        return statistics[0].clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, statistics = ctx.saved_tensors
        gradients = HeadGradients(hidden, weight, bias, ctx.needs_input_grad[:3], statistics.dtype)
        with torch.autocast(hidden.device.type, enabled=False):  # Lightning's backward passes are inside
            for start in range(0, len(hidden), ctx.chunk):
                part = slice(start, start + ctx.chunk)
                raw = nn.functional.linear(hidden[part], weight, bias)
                of_chunk, expected = Statistics(*statistics[:, part].unbind()), ctx.teacher(part).to(raw.device)
                gradient = _way(raw).student_gradient_
                gradients.add(part, gradient(raw, expected, of_chunk, upstream[part], ctx.transforms, ctx.kind))
        return *gradients.result(ctx.held_in), *(None,) * 4


def _way(raw: Tensor) -> Any:
    return divergence_kernels if is_fused(raw) else divergence_formulas
