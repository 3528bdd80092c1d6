# mypy: disable-error-code="no-untyped-def"
# triton types a kernel's arguments itself.
"""Fused CUDA kernels of ``divergence_formulas.py``, whose texts say what they compute.

Written out in torch, divergence and gradient pass over chunks of [tokens, vocabulary] some forty times, which at a vocabulary of
150,000 takes longer than the matrix products of both heads. Here the forward pass reads both twice, and the backward pass reads
both and writes one, in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grpo_lightning.numerics.divergence_formulas import Divergence, Statistics
from grpo_lightning.numerics.kernel_language import jit, tl, triton
from grpo_lightning.numerics.logit_transform import LogitTransform
from grpo_lightning.numerics.logprob_kernels import transformed

BLOCK = 4096
"""Logits of a row, of either model, that one program holds at a time."""
WARPS = 8
KINDS = {"reverse_kl": 0, "forward_kl": 1, "jsd": 2}


def divergence_statistics(
    student: Tensor, teacher: Tensor, transforms: tuple[LogitTransform, LogitTransform], kind: Divergence
) -> Statistics:
    """See ``divergence_formulas``; nothing is overwritten, and rows may have any stride."""
    rows, vocab_size = student.shape
    found = torch.empty(4, rows, dtype=torch.float32, device=student.device)
    if rows:
        _statistics_kernel[(rows,)](
            student, student.stride(0), teacher, teacher.stride(0), *found.unbind(), vocab_size,
            **_constants(transforms, kind),
        )  # fmt: skip
    return Statistics(*found.unbind())


def student_gradient_(
    student: Tensor,
    teacher: Tensor,
    statistics: Statistics,
    upstream: Tensor,
    transforms: tuple[LogitTransform, LogitTransform],
    kind: Divergence,
) -> Tensor:
    """See ``divergence_formulas``; the student's logits are overwritten and returned."""
    rows, vocab_size = student.shape
    if rows:
        _gradient_kernel[(rows, triton.cdiv(vocab_size, BLOCK))](
            student, student.stride(0), teacher, teacher.stride(0),
            statistics.student, statistics.teacher, statistics.of_student, upstream.contiguous(), vocab_size,
            **_constants(transforms, kind),
        )  # fmt: skip
    return student


def _constants(transforms: tuple[LogitTransform, LogitTransform], kind: Divergence) -> dict[str, Any]:
    constants: dict[str, Any] = {"KIND": KINDS[kind], "BLOCK": BLOCK, "num_warps": WARPS}
    for name, transform in zip(("student", "teacher"), transforms, strict=True):
        constants |= {
            f"{name}_scale": float(transform.logit_scale),
            f"{name}_temperature": float(transform.temperature),
            f"{name}_softcap": transform.softcap if transform.softcap is not None else 0.0,
            f"{name.upper()}_CAPPED": transform.softcap is not None,
        }
    return constants


@jit
def _log_mean(log_p, log_q):
    """The logarithm of the mean of both probabilities."""
    top = tl.maximum(log_p, log_q)
    return top + tl.log(0.5 * (tl.exp(log_p - top) + tl.exp(log_q - top)))


@jit
def _normalizer(
    row, vocab_size: tl.constexpr, scale, temperature, softcap, CAPPED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The log-normalizer of one row: running maximum and sum of exponentials."""
    columns = tl.arange(0, BLOCK)
    top = -float("inf")
    total = 0.0
    for start in range(0, vocab_size, BLOCK):
        inside = start + columns < vocab_size
        x = tl.load(row + start + columns, mask=inside, other=0.0).to(tl.float32)
        z, _ = transformed(x, scale, temperature, softcap, CAPPED)
        z = tl.where(inside, z, -float("inf"))
        new_top = tl.maximum(top, tl.max(z, 0))
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(z - new_top), 0)
        top = new_top
    return top + tl.log(total)


@jit
def _statistics_kernel(
    student, student_stride, teacher, teacher_stride, divergence, of_p, of_q, of_student, vocab_size: tl.constexpr,
    student_scale, student_temperature, student_softcap, teacher_scale, teacher_temperature, teacher_softcap,
    STUDENT_CAPPED: tl.constexpr, TEACHER_CAPPED: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row a program: both normalizers, then the sums that need them."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    normalizer_p = _normalizer(
        student + row * student_stride, vocab_size, student_scale, student_temperature, student_softcap,
        STUDENT_CAPPED, BLOCK,
    )  # fmt: skip
    normalizer_q = _normalizer(
        teacher + row * teacher_stride, vocab_size, teacher_scale, teacher_temperature, teacher_softcap,
        TEACHER_CAPPED, BLOCK,
    )  # fmt: skip
    left = 0.0
    right = 0.0
    for start in range(0, vocab_size, BLOCK):
        inside = start + columns < vocab_size
        x = tl.load(student + row * student_stride + start + columns, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(teacher + row * teacher_stride + start + columns, mask=inside, other=0.0).to(tl.float32)
        z_p, _ = transformed(x, student_scale, student_temperature, student_softcap, STUDENT_CAPPED)
        z_q, _ = transformed(y, teacher_scale, teacher_temperature, teacher_softcap, TEACHER_CAPPED)
        log_p = z_p - normalizer_p
        log_q = z_q - normalizer_q
        if KIND == 0:
            left += tl.sum(tl.where(inside, tl.exp(log_p) * (log_p - log_q), 0.0), 0)
        elif KIND == 1:
            left += tl.sum(tl.where(inside, tl.exp(log_q) * (log_q - log_p), 0.0), 0)
        else:
            log_m = _log_mean(log_p, log_q)
            left += tl.sum(tl.where(inside, tl.exp(log_p) * (log_p - log_m), 0.0), 0)
            right += tl.sum(tl.where(inside, tl.exp(log_q) * (log_q - log_m), 0.0), 0)
    tl.store(of_p + row, normalizer_p)
    tl.store(of_q + row, normalizer_q)
    tl.store(of_student + row, left)
    if KIND == 2:
        tl.store(divergence + row, 0.5 * (left + right))
    else:
        tl.store(divergence + row, left)


@jit
def _gradient_kernel(
    student, student_stride, teacher, teacher_stride, of_p, of_q, of_student, upstream, vocab_size: tl.constexpr,
    student_scale, student_temperature, student_softcap, teacher_scale, teacher_temperature, teacher_softcap,
    STUDENT_CAPPED: tl.constexpr, TEACHER_CAPPED: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one row a program; each logit of the student is read and replaced by its gradient."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocab_size
    x = tl.load(student + row * student_stride + columns, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(teacher + row * teacher_stride + columns, mask=inside, other=0.0).to(tl.float32)
    z_p, slope = transformed(x, student_scale, student_temperature, student_softcap, STUDENT_CAPPED)
    z_q, _ = transformed(y, teacher_scale, teacher_temperature, teacher_softcap, TEACHER_CAPPED)
    log_p = z_p - tl.load(of_p + row)
    log_q = z_q - tl.load(of_q + row)
    if KIND == 0:
        grad = tl.exp(log_p) * (log_p - log_q - tl.load(of_student + row))
    elif KIND == 1:
        grad = tl.exp(log_p) - tl.exp(log_q)
    else:
        grad = 0.5 * tl.exp(log_p) * (log_p - _log_mean(log_p, log_q) - tl.load(of_student + row))
    grad = grad * slope * tl.load(upstream + row)
    tl.store(student + row * student_stride + columns, grad.to(student.dtype.element_ty), mask=inside)
