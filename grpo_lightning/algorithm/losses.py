"""Policy losses, importance ratios, the KL term and the off-policy mask: pure, per token, not yet averaged.

Every function works on flat ragged tensors: ``(T,)`` tokens of M completions, told apart by a
:class:`~grpo_lightning.algorithm.segments.Segments`. Logprobs are in nats at the sampling temperature. Advantages come spread
over the tokens, ``(T,)``. Lower is better.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from grpo_lightning.algorithm.segments import Segments

LOWEST_LOG_WEIGHT = math.log(1e-8)
HIGHEST_LOG_WEIGHT = 20.0


def token_ratio(log_ratio: Tensor) -> Tensor:
    """``(T,)``: ``pi(token) / pi_old(token)`` (arXiv:2402.03300, Eq. 3).

    Args:
        log_ratio: ``(T,)`` nats, current minus old logprobs; carries gradient.
    """
    return torch.exp(log_ratio)


def sequence_ratio(log_ratio: Tensor, segments: Segments) -> Tensor:
    """``(T,)``: the length-normalised ratio of the whole completion, on each of its tokens.

    GSPO (arXiv:2507.18071, Eq. 7). The gradient of one token's value reaches every token of its completion.
    """
    return segments.spread(torch.exp(segments.mean(log_ratio)))


def sequence_token_ratio(log_ratio: Tensor, segments: Segments) -> Tensor:
    """``(T,)``: the value of :func:`sequence_ratio` with the gradient of the token's own logprob.

    GSPO-token (arXiv:2507.18071, Eq. 14).
    """
    completion = segments.spread(segments.mean(log_ratio.detach()))
    return torch.exp(completion + log_ratio - log_ratio.detach())


def importance_ratio(log_ratio: Tensor, segments: Segments, level: str) -> Tensor:
    """``(T,)`` ratios at the level ``"token"``, ``"sequence"`` or ``"sequence_token"``.

    Raises:
        ValueError: If the level is none of the three.
    """
    if level == "token":
        return token_ratio(log_ratio)
    if level == "sequence":
        return sequence_ratio(log_ratio, segments)
    if level == "sequence_token":
        return sequence_token_ratio(log_ratio, segments)
    raise ValueError(f"importance level {level!r} is unknown. Choose token, sequence or sequence_token.")


def clipped_policy_loss(
    ratio: Tensor, advantages: Tensor, epsilon: float, epsilon_high: float, delta: float | None = None
) -> Tensor:
    """Clipped surrogate, ``-min(r * A, clip(r, 1 - epsilon, 1 + epsilon_high) * A)``.

    The policy term of Eq. 3 in DeepSeekMath (arXiv:2402.03300), negated. Separate bounds are DAPO's "Clip-Higher"
    (arXiv:2503.14476, Eq. 8). ``delta`` caps the unclipped ratio from above, which bounds the loss of a bad token
    whose probability has risen (two-sided clipping, INTELLECT-2, arXiv:2505.07291).

    Args:
        ratio: ``(T,)``, carries gradient.
        advantages: ``(T,)``.
        epsilon, epsilon_high: How far the ratio may fall and rise from 1 before a good step stops paying.
        delta: Largest ratio, or None for no cap; above ``1 + epsilon_high`` to matter for bad tokens only.
    """
    clipped = ratio.clamp(1.0 - epsilon, 1.0 + epsilon_high)
    capped = ratio if delta is None else ratio.clamp(max=delta)
    return -torch.minimum(capped * advantages, clipped * advantages)


def cispo_policy_loss(logprobs: Tensor, ratio: Tensor, advantages: Tensor, epsilon_high: float) -> Tensor:
    """``-sg(min(r, epsilon_high)) * A * logprob``: the weight is clipped, the gradient never stops (CISPO).

    MiniMax-M1 (arXiv:2506.13585), Eq. 4 and 5, without a lower bound as in ScaleRL (arXiv:2510.13786).

    Args:
        logprobs: ``(T,)`` nats; the only argument that carries gradient.
        ratio: ``(T,)``; its gradient is dropped.
        advantages: ``(T,)``.
        epsilon_high: The largest weight itself, not a distance from 1; about 5 in the papers.
    """
    return -ratio.detach().clamp(max=epsilon_high) * advantages * logprobs


def sapo_policy_loss(ratio: Tensor, advantages: Tensor, temperature_pos: float, temperature_neg: float) -> Tensor:
    """``-(4 / tau) * sigmoid(tau * (r - 1)) * A``: a soft gate instead of a clip (SAPO, arXiv:2511.20347).

    At ``r = 1`` the slope in r is A, as in the unclipped surrogate, and it fades smoothly on either side.

    Args:
        ratio: ``(T,)``, carries gradient.
        advantages: ``(T,)``.
        temperature_pos, temperature_neg: tau where A > 0 and elsewhere; larger closes the gate sooner.
    """
    tau = torch.full_like(advantages, temperature_neg).masked_fill(advantages > 0, temperature_pos)
    return -torch.sigmoid(tau * (ratio - 1.0)) * 4.0 / tau * advantages


@torch.no_grad()
def vespo_weight(
    log_ratio: Tensor,
    advantages: Tensor,
    segments: Segments,
    sampler_weight: Tensor | None,
    k_pos: float,
    lambda_pos: float,
    k_neg: float,
    lambda_neg: float,
) -> Tensor:
    """``(M,)``: ``phi(w) = exp(lambda) * w**k * exp(-lambda * w)``, with ``phi(1) = 1`` (VESPO, arXiv:2602.10693).

    ``w`` is the ratio of the whole completion, not normalised by its length, times the sampler correction.

    Args:
        log_ratio: ``(T,)`` nats.
        advantages: ``(M,)``, one per completion; its sign chooses k and lambda (0 counts as positive).
        segments: Tells the completions apart.
        sampler_weight: ``(T,)`` weights old / sampler at token level, or None.
        k_pos, lambda_pos, k_neg, lambda_neg: Shape of the Gamma weight: k fades ``w < 1``, lambda fades ``w > 1``.
    """
    log_weight = segments.sum(log_ratio.clamp(-20.0, 20.0))
    if sampler_weight is not None:
        log_weight = log_weight + segments.sum(sampler_weight.log().clamp(LOWEST_LOG_WEIGHT, HIGHEST_LOG_WEIGHT))
    log_weight = log_weight.clamp(LOWEST_LOG_WEIGHT, HIGHEST_LOG_WEIGHT)
    good = advantages >= 0
    k = torch.full_like(advantages, k_neg).masked_fill(good, k_pos)
    lam = torch.full_like(advantages, lambda_neg).masked_fill(good, lambda_pos)
    return torch.exp(lam + k * log_weight - lam * log_weight.exp())


def vespo_policy_loss(logprobs: Tensor, weight: Tensor, advantages: Tensor) -> Tensor:
    """``-sg(phi) * A * logprob`` (VESPO, arXiv:2602.10693).

    Args:
        logprobs: ``(T,)`` nats; the only argument that carries gradient.
        weight: ``(T,)``: :func:`vespo_weight`, spread over the tokens.
        advantages: ``(T,)``.
    """
    return -weight.detach() * advantages * logprobs


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor, ratio: Tensor | None = None) -> Tensor:
    """``(T,)`` nats: the k3 estimate of KL(policy || reference), ``exp(q) - q - 1`` with ``q = ref - logprob``.

    Never negative, unbiased on the policy's own samples (DeepSeekMath, arXiv:2402.03300, Eq. 4). With ``ratio`` it is
    multiplied by the importance ratio, gradient included, so that its gradient is that of the reverse KL also for
    samples of an older policy (DeepSeek-V3.2, arXiv:2512.02556).

    Args:
        logprobs: ``(T,)`` nats, current policy; carries gradient.
        ref_logprobs: ``(T,)`` nats, the frozen reference.
        ratio: ``(T,)`` importance ratio for the correction, or None for the plain estimate.
    """
    gap = ref_logprobs - logprobs
    kl = torch.exp(gap) - gap - 1.0
    return kl if ratio is None else kl * ratio


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
