# mypy: disable-error-code="no-untyped-def"
# triton types a kernel's arguments itself.
"""Fused CUDA kernels for one chunk of logits: softmax statistics forward, the gradient of the logits backward.

Written out in torch, each of these passes over a [chunk, vocabulary] tensor half a dozen times, and at a vocabulary of
150,000 the memory traffic costs as much as the matrix products. Here it is one read, and in the backward pass one read
and one write in place. ``logprobs.py`` uses them where triton is installed, and ``logprob_formulas.py`` elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grpo_lightning.numerics.kernel_language import jit, tl, triton
from grpo_lightning.numerics.logit_transform import LogitTransform

BLOCK = 4096
"""Logits of a row that one program holds at a time."""
WARPS = 8


def softmax_statistics(raw: Tensor, targets: Tensor, transform: LogitTransform) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over a chunk of raw logits.

    Args:
        raw: ``(n, V)``, rows contiguous, in any floating dtype.
        targets: ``(n,)`` int64.
        transform: From raw logits to the logits z of the sampled distribution.

    Returns:
        The targets' logprobs, the log-normalizers of z and the entropies, ``(n,)`` float32 each.
    """
    rows, vocab_size = raw.shape
    logprobs, normalizers, entropy = torch.empty(3, rows, dtype=torch.float32, device=raw.device).unbind()
    if rows:
        _statistics_kernel[(rows,)](
            raw, raw.stride(0), targets, logprobs, normalizers, entropy, vocab_size, **_constants(transform)
        )
    return logprobs, normalizers, entropy


def logit_gradient_(
    raw: Tensor,
    targets: Tensor,
    normalizers: Tensor,
    grad_logprobs: Tensor,
    entropy: tuple[Tensor, Tensor] | None,
    transform: LogitTransform,
) -> Tensor:
    """Replaces a chunk of raw logits by the gradient of the loss with respect to them.

    Args:
        raw: ``(n, V)``, rows contiguous; overwritten and returned.
        targets: ``(n,)`` int64.
        normalizers: ``(n,)`` float32, from ``softmax_statistics``.
        grad_logprobs: ``(n,)`` float32, gradient with respect to the targets' logprobs.
        entropy: The entropies and the gradient with respect to them, ``(n,)`` float32 each; None without that term.
        transform: As in the forward pass.
    """
    rows, vocab_size = raw.shape
    value, upstream = entropy if entropy is not None else (grad_logprobs, grad_logprobs)
    if rows:
        _gradient_kernel[(rows, triton.cdiv(vocab_size, BLOCK))](
            raw,
            raw.stride(0),
            targets,
            normalizers,
            grad_logprobs.contiguous(),
            value,
            upstream.contiguous(),
            vocab_size,
            HAS_ENTROPY=entropy is not None,
            **_constants(transform),
        )
    return raw


def _constants(transform: LogitTransform) -> dict[str, Any]:
    return {
        "scale": float(transform.logit_scale),
        "temperature": float(transform.temperature),
        "softcap": transform.softcap if transform.softcap is not None else 0.0,
        "HAS_SOFTCAP": transform.softcap is not None,
        "BLOCK": BLOCK,
        "num_warps": WARPS,
    }


@jit
def _tanh(x):
    # From the exponential of a number that is never positive, so that it cannot overflow.
    small = tl.exp(-2.0 * tl.abs(x))
    magnitude = (1.0 - small) / (1.0 + small)
    return tl.where(x < 0, -magnitude, magnitude)


@jit
def transformed(raw, scale, temperature, softcap, HAS_SOFTCAP: tl.constexpr):
    """The logits z and d z / d raw."""
    if HAS_SOFTCAP:
        bounded = _tanh(raw * (scale / softcap))
        z = bounded * (softcap / temperature)
        slope = (1.0 - bounded * bounded) * (scale / temperature)
    else:
        z = raw * (scale / temperature)
        slope = tl.zeros_like(raw) + scale / temperature
    return z, slope


@jit
def _statistics_kernel(
    raw, stride, targets, logprobs, normalizers, entropy, vocab_size: tl.constexpr,
    scale, temperature, softcap, HAS_SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row a program: running maximum, sum of exponentials, and sum of exponentials times z."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    top = -float("inf")
    total = 0.0
    weighted = 0.0
    for start in range(0, vocab_size, BLOCK):
        inside = start + columns < vocab_size
        x = tl.load(raw + row * stride + start + columns, mask=inside, other=0.0).to(tl.float32)
        z, _ = transformed(x, scale, temperature, softcap, HAS_SOFTCAP)
        new_top = tl.maximum(top, tl.max(tl.where(inside, z, -float("inf")), 0))
        p = tl.where(inside, tl.exp(z - new_top), 0.0)
        shrink = tl.exp(top - new_top)
        total = total * shrink + tl.sum(p, 0)
        weighted = weighted * shrink + tl.sum(p * z, 0)
        top = new_top
    normalizer = top + tl.log(total)
    chosen = tl.load(raw + row * stride + tl.load(targets + row)).to(tl.float32)
    z, _ = transformed(chosen, scale, temperature, softcap, HAS_SOFTCAP)
    tl.store(logprobs + row, z - normalizer)
    tl.store(normalizers + row, normalizer)
    tl.store(entropy + row, normalizer - weighted / total)


@jit
def _gradient_kernel(
    raw, stride, targets, normalizers, grad_logprobs, entropy, grad_entropy, vocab_size: tl.constexpr,
    scale, temperature, softcap, HAS_ENTROPY: tl.constexpr, HAS_SOFTCAP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one row a program; each logit is read and replaced by its gradient."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocab_size
    x = tl.load(raw + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    z, slope = transformed(x, scale, temperature, softcap, HAS_SOFTCAP)
    log_p = z - tl.load(normalizers + row)
    upstream = tl.load(grad_logprobs + row)
    factor = tl.zeros_like(z) + upstream
    if HAS_ENTROPY:
        factor += tl.load(grad_entropy + row) * (log_p + tl.load(entropy + row))
    grad = tl.where(columns == tl.load(targets + row), upstream, 0.0) - tl.exp(log_p) * factor
    tl.store(raw + row * stride + columns, (grad * slope).to(raw.dtype.element_ty), mask=inside)
