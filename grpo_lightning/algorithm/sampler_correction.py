"""Weights that correct for a sampler whose probabilities differ from the trainer's.

A fast inference engine gives its tokens slightly other probabilities than the model that is trained, at the same
weights. The ratio ``pi_old / pi_sampler`` puts that right in expectation; a bound keeps its variance finite: truncated
importance sampling (Yao et al., 2025, "Your efficient RL framework secretly brings you off-policy RL training") or
masking (Liu et al., 2025, "When speed kills stability").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_lightning.algorithm.segments import Segments

LEVELS = ("token", "sequence", "geometric")
BOUNDS = ("truncate", "mask")
MODES = tuple(f"{level}_{bound}" for level in LEVELS for bound in BOUNDS)


def sampler_log_ratio(old_logprobs: Tensor, sampling_logprobs: Tensor, segments: Segments) -> Tensor:
    """``(T,)`` nats: old minus sampling logprobs; 0 where the mask is False or the sampler's value is NaN (unknown)."""
    return torch.nan_to_num(segments.keep(old_logprobs - sampling_logprobs), nan=0.0)


def sampler_ratio(log_ratio: Tensor, segments: Segments, level: str) -> Tensor:
    """``pi_old / pi_sampler``: ``(T,)`` at token level; ``(M,)`` of the whole completion at the other two.

    ``sequence`` is the product over the tokens, whose spread grows with the length. ``geometric`` is its L-th root,
    the length-normalised ratio that GSPO (arXiv:2507.18071, Eq. 7) uses for the policy.

    Args:
        log_ratio: ``(T,)`` nats, from :func:`sampler_log_ratio`.
        segments: Which tokens belong to which of the M completions.
        level: ``token``, ``sequence`` or ``geometric``.

    Raises:
        ValueError: If the level is none of these.
    """
    if level == "token":
        return log_ratio.exp()
    if level == "sequence":
        return segments.sum(log_ratio).exp()
    if level == "geometric":
        return segments.mean(log_ratio).exp()
    raise ValueError(f"sampler correction level {level!r} is unknown. Choose one of {', '.join(LEVELS)}.")


def outside(ratio: Tensor, minimum: float | None, maximum: float | None) -> Tensor:
    """Bool, shape of ``ratio``: True where it leaves [minimum, maximum]; None is no bound."""
    below = torch.zeros_like(ratio, dtype=torch.bool) if minimum is None else ratio < minimum
    return below if maximum is None else below | (ratio > maximum)


@dataclass(frozen=True)
class SamplerWeights:
    """The bounded ratio, in its own shape (one per token or per completion) and spread over the tokens."""

    per_token: Tensor
    """(T,): what multiplies the loss."""
    own: Tensor
    """(T,) at token level, (M,) at the others."""
    bounded: Tensor
    """Bool, shape of ``own``: True where a bound changed the value."""
    counted: Tensor
    """Bool, shape of ``own``: False for tokens outside the mask and for completions without any."""


@torch.no_grad()
def sampler_weights(
    log_ratio: Tensor, segments: Segments, mode: str, minimum: float | None, maximum: float | None
) -> SamplerWeights:
    """Sampler correction W in one of the six modes ``{token,sequence,geometric}_{truncate,mask}``.

    Args:
        log_ratio: ``(T,)`` nats, from :func:`sampler_log_ratio`.
        segments: Tells the completions apart.
        mode: Level of the ratio, and what happens outside the bounds: ``truncate`` clamps, ``mask`` gives weight 0.
        minimum, maximum: Bounds of the ratio; None is no bound.
    """
    level, bound = mode.split("_")
    ratio = sampler_ratio(log_ratio, segments, level)
    bounded = outside(ratio, minimum, maximum)
    own = ratio.masked_fill(bounded, 0.0) if bound == "mask" else ratio.clamp(minimum, maximum)
    if level == "token":
        return SamplerWeights(own, own, bounded, segments.mask)
    return SamplerWeights(segments.spread(own), own, bounded, segments.lengths > 0)


def effective_sample_size(mean_weight: float, mean_square: float) -> float:
    """Effective share of the sample, in (0, 1]: ``(sum w)**2 / (n * sum w**2)``; 0 where every weight is 0.

    Example:
        >>> effective_sample_size(mean_weight=0.5, mean_square=0.5)  # half of the weights are 1, half are 0
        0.5
    """
    return mean_weight**2 / mean_square if mean_square > 0 else 0.0
