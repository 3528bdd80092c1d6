"""One chunk of logits written out in torch: softmax statistics forward, the gradient of the logits backward.

``logprob_kernels.py`` has the same two functions as fused CUDA kernels, which these are the specification of.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lightning.numerics.dtypes import at_least_float32
from grpo_lightning.numerics.logit_transform import LogitTransform


def softmax_statistics(
    raw: Tensor, targets: Tensor, transform: LogitTransform, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``(n,)`` each: the targets' logprobs, the log-normalizers of z, and the entropies or zeros.

    Args:
        raw: ``(n, V)`` raw logits, overwritten.
        targets: ``(n,)`` int64.
        transform: From raw logits to z.
        with_entropy: Whether the entropies are wanted.
    """
    z = transform.apply(at_least_float32(raw))
    log_p = z.log_softmax(-1)
    logprobs = log_p.gather(-1, targets[:, None])[:, 0]
    normalizers = z.gather(-1, targets[:, None])[:, 0] - logprobs
    entropy = torch.linalg.vecdot(log_p.exp(), log_p).neg_() if with_entropy else torch.zeros_like(logprobs)
    return logprobs, normalizers, entropy


def logit_gradient_(
    raw: Tensor,
    targets: Tensor,
    normalizers: Tensor,
    grad_logprobs: Tensor,
    entropy: tuple[Tensor, Tensor] | None,
    transform: LogitTransform,
) -> Tensor:
    """Gradient of the loss with respect to raw logits, ``(n, V)`` in their dtype.

    ``d logprob / d z_v = [v = target] - p_v`` and ``d entropy / d z_v = -p_v * (log p_v + entropy)``.

    Args:
        raw: ``(n, V)`` raw logits, overwritten.
        targets: ``(n,)`` int64.
        normalizers: ``(n,)``, from ``softmax_statistics``.
        grad_logprobs: ``(n,)``, gradient with respect to the targets' logprobs.
        entropy: The entropies and the gradient with respect to them, ``(n,)`` each; None without that term.
        transform: From raw logits to z.
    """
    z = transform.apply(at_least_float32(raw))
    slope = transform.slope(z)
    log_p = z.sub_(normalizers[:, None])
    if entropy is None:
        grad = log_p.exp_().mul_(-grad_logprobs[:, None])
    else:
        value, upstream = entropy
        p = log_p.exp()
        grad = log_p.add_(value[:, None]).mul_(upstream[:, None]).add_(grad_logprobs[:, None]).mul_(p).neg_()
    grad.scatter_add_(-1, targets[:, None], grad_logprobs[:, None])
    if isinstance(slope, Tensor) or slope != 1.0:
        grad.mul_(slope)
    return grad.to(raw.dtype)
