"""One chunk of two models' logits written out in torch: their divergence forward, the gradient of the student's logits backward.

``divergence_kernels.py`` has the same two functions as fused CUDA kernels, which these are the specification of. With student p and
teacher q, z the student's logits, and m = (p + q) / 2:

    reverse_kl   D = sum p log(p / q)                       d D / d z = p (log(p / q) - D)
    forward_kl   D = sum q log(q / p)                       d D / d z = p - q
    jsd          D = (sum p log(p / m) + sum q log(q / m)) / 2    d D / d z = p (log(p / m) - sum p log(p / m)) / 2
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from grpo_lightning.numerics.dtypes import at_least_float32
from grpo_lightning.numerics.logit_transform import LogitTransform

Divergence = Literal["reverse_kl", "forward_kl", "jsd"]


class Statistics(NamedTuple):
    """What the backward pass needs of each token, ``(n,)`` each."""

    divergence: Tensor
    """Nats."""
    student: Tensor
    """Log-normalizer of the student's z."""
    teacher: Tensor
    """The teacher's."""
    of_student: Tensor
    """``sum p log(p / q)``, or with m for jsd; the divergence itself where the gradient needs neither."""


def divergence_statistics(
    student: Tensor, teacher: Tensor, transforms: tuple[LogitTransform, LogitTransform], kind: Divergence
) -> Statistics:
    """Of ``(n, V)`` raw logits, overwritten.

    Args:
        student: Its raw logits.
        teacher: Of the same tokens.
        transforms: From raw logits to z, of the student and of the teacher.
        kind: Which divergence.
    """
    log_p, log_q = (t.apply(at_least_float32(raw)) for t, raw in zip(transforms, (student, teacher), strict=True))
    normalizers = log_p.logsumexp(-1), log_q.logsumexp(-1)
    log_p, log_q = log_p - normalizers[0][:, None], log_q - normalizers[1][:, None]
    if kind == "forward_kl":
        found = of_student = _kl(log_q, log_p)
    elif kind == "reverse_kl":
        found = of_student = _kl(log_p, log_q)
    else:
        log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
        of_student = _kl(log_p, log_m)
        found = 0.5 * (of_student + _kl(log_q, log_m))
    return Statistics(found, *normalizers, of_student)


def student_gradient_(
    student: Tensor,
    teacher: Tensor,
    statistics: Statistics,
    upstream: Tensor,
    transforms: tuple[LogitTransform, LogitTransform],
    kind: Divergence,
) -> Tensor:
    """Gradient of the loss with respect to the student's raw logits, ``(n, V)`` in their dtype.

    Args:
        student: ``(n, V)`` raw logits, overwritten.
        teacher: Of the same tokens, overwritten.
        statistics: Of these tokens.
        upstream: ``(n,)``, gradient with respect to their divergences.
        transforms: As in the forward pass.
        kind: Which divergence.
    """
    z = transforms[0].apply(at_least_float32(student))
    slope = transforms[0].slope(z)
    log_p = z - statistics.student[:, None]
    log_q = transforms[1].apply(at_least_float32(teacher)) - statistics.teacher[:, None]
    if kind == "forward_kl":
        grad = log_p.exp() - log_q.exp()
    elif kind == "reverse_kl":
        grad = log_p.exp() * (log_p - log_q - statistics.of_student[:, None])
    else:
        log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
        grad = 0.5 * log_p.exp() * (log_p - log_m - statistics.of_student[:, None])
    return (grad * upstream[:, None] * slope).to(student.dtype)


def _kl(left: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.vecdot(left.exp(), left - right)
