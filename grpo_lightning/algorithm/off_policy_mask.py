"""Leaves out bad completions that the policy has already moved away from."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lightning.algorithm.segments import Segments


@torch.no_grad()
def off_policy_mask(
    logprobs: Tensor, behaviour_logprobs: Tensor, advantages: Tensor, segments: Segments, threshold: float
) -> Tensor:
    """``(M,)`` bool: False for bad completions that the policy has already moved away from.

    A completion is kept if its advantage is not negative, or if the mean of ``behaviour - current`` over its tokens is
    at most the threshold (DeepSeek-V3.2, arXiv:2512.02556, Eq. 9).

    Args:
        logprobs: ``(T,)`` nats, current policy.
        behaviour_logprobs: ``(T,)`` nats, what the sampler gave; NaN (unknown) counts as no drift.
        advantages: ``(M,)``, one per completion.
        segments: Tells the completions apart.
        threshold: Nats per token.
    """
    drift = segments.mean(torch.nan_to_num(behaviour_logprobs - logprobs, nan=0.0))
    return (advantages >= 0) | (drift <= threshold)
