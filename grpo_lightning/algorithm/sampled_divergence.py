"""Learning from a teacher by the sampled tokens alone, and weights for tokens that older weights have sampled (SDPO)."""

from __future__ import annotations

from torch import Tensor

LARGEST_LOG_RATIO = 20.0


def sampled_token_loss(logprobs: Tensor, told: Tensor) -> Tensor:
    """``(T,)``: its gradient is, in the mean over sampled tokens, that of the reverse KL divergence from the teacher.

    ``(log p - log q) log p`` with a constant first factor: the log ratio to the teacher is the token's negative advantage. SDPO
    (arXiv:2601.20802), as TRL's ``distillation_mode: sampled_token`` has it.

    Args:
        logprobs: ``(T,)`` nats of the sampled tokens under the policy; carries gradient.
        told: ``(T,)`` nats under the teacher; no gradient.

    Example:
        >>> import torch
        >>> sampled_token_loss(torch.tensor([-1.0, -2.0]), torch.tensor([-0.5, -2.0]))
        tensor([0.5000, -0.0000])
    """
    return (logprobs - told).detach() * logprobs


def clipped_importance(logprobs: Tensor, old_logprobs: Tensor, clip: float) -> Tensor:
    """``(T,)``: how much likelier each token has become since it was sampled, ``clip`` at most; no gradient.

    Args:
        logprobs: ``(T,)`` nats under the policy.
        old_logprobs: ``(T,)`` nats under the weights that the step began with.
        clip: Largest weight.

    Example:
        >>> import torch
        >>> clipped_importance(torch.tensor([-1.0, -3.0]), torch.tensor([-3.0, -3.0]), 2.0)
        tensor([2., 1.])
    """
    log_ratio = (logprobs - old_logprobs).detach().clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return log_ratio.exp().clamp(max=clip)
