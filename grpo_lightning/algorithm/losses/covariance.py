"""Losses that look at how much each token drives the policy's entropy down (arXiv:2505.22617).

Clip-Cov leaves a few of those tokens out, KL-Cov holds the strongest near the old policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grpo_lightning.algorithm.losses.base import PolicyLoss, refuse_level, warn_of_sequence_ratio
from grpo_lightning.algorithm.losses.clipped import ClippedLoss
from grpo_lightning.algorithm.metric_sums import MetricSums, mean_over
from grpo_lightning.algorithm.setting_checks import HasObjectiveSettings, check_above_zero, check_finite, refusal
from grpo_lightning.algorithm.token_batch import LossInputs


def token_covariance(advantages: Tensor, logprobs: Tensor) -> Tensor:
    """``(K,)``: ``(A - mean A) * (logprob - mean logprob)``, whose sum entropy falls with (arXiv:2505.22617).

    Args:
        advantages: ``(K,)`` of all tokens of the step.
        logprobs: ``(K,)`` nats.
    """
    return (advantages - advantages.mean()) * (logprobs - logprobs.mean())


@dataclass(frozen=True)
class ClipCovLoss(ClippedLoss):
    """The clipped surrogate of dapo without some tokens of high covariance (Clip-Cov, arXiv:2505.22617).

    They are drawn at random, once per step over all ranks, by their logprobs at the weights that start the step.

    Args:
        epsilon, epsilon_high, delta: As for dapo.
        clip_cov_ratio: Share of the step's tokens that is drawn; at least one token.
        clip_cov_min, clip_cov_max: Covariance, in nats times advantage, between which tokens may be drawn.
    """

    known_as: ClassVar[str] = "clip_cov"
    marks_tokens: ClassVar[bool] = True
    clip_cov_ratio: float = 0.0002
    clip_cov_min: float = 1.0
    clip_cov_max: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(self, "clip_cov_ratio")
        if self.clip_cov_min >= self.clip_cov_max:
            raise refusal(self, "clip_cov_min", f"has to be below clip_cov_max={self.clip_cov_max!r}.")

    def mark(self, advantages: Tensor, logprobs: Tensor, generator: torch.Generator) -> Tensor:
        """Tokens to leave out."""
        covariance = token_covariance(advantages, logprobs)
        candidates = ((covariance > self.clip_cov_min) & (covariance < self.clip_cov_max)).nonzero()[:, 0]
        drawn = torch.randperm(len(candidates), generator=generator)[: max(int(self.clip_cov_ratio * len(logprobs)), 1)]
        return torch.zeros(len(logprobs), dtype=torch.bool).index_fill(0, candidates[drawn], True)

    def per_token(self, inputs: LossInputs) -> Tensor:
        """The clipped surrogate, 0 where a token was drawn."""
        assert inputs.is_marked is not None
        return super().per_token(inputs).masked_fill(inputs.is_marked, 0.0)

    def metrics(self, inputs: LossInputs) -> MetricSums:
        """``clip_cov/dropped`` besides those of the clip."""
        assert inputs.is_marked is not None
        dropped = mean_over(inputs.is_marked.to(inputs.ratio.dtype), inputs.segments.mask)
        return super().metrics(inputs) + MetricSums(means={"clip_cov/dropped": dropped})

    def check(self, settings: HasObjectiveSettings) -> None:
        """Warns of sequence ratios."""
        warn_of_sequence_ratio(self, settings)


@dataclass(frozen=True)
class KLCovLoss(PolicyLoss):
    """``-r * A``, plus ``kl_cov_coef * |log r|`` for the tokens of highest covariance (KL-Cov, arXiv:2505.22617).

    They are chosen once per step over all ranks, by their logprobs at the weights that start it. While these are the
    current ones the penalty is 0 and has no gradient: it needs more than one update per step.

    Args:
        kl_cov_ratio: Share of the step's tokens that is held; at least one token.
        kl_cov_coef: Weight of the penalty.
    """

    known_as: ClassVar[str] = "kl_cov"
    marks_tokens: ClassVar[bool] = True
    kl_cov_ratio: float = 0.0002
    kl_cov_coef: float = 1.0

    def __post_init__(self) -> None:
        check_finite(self)
        check_above_zero(self, "kl_cov_ratio", "kl_cov_coef")

    def mark(self, advantages: Tensor, logprobs: Tensor, generator: torch.Generator) -> Tensor:
        """Tokens to hold."""
        count = max(int(self.kl_cov_ratio * len(logprobs)), 1)
        highest = token_covariance(advantages, logprobs).topk(min(count, len(logprobs))).indices
        return torch.zeros(len(logprobs), dtype=torch.bool).index_fill(0, highest, True)

    def per_token(self, inputs: LossInputs) -> Tensor:
        """The plain surrogate, with the penalty where a token is held."""
        assert inputs.is_marked is not None
        penalty = self.kl_cov_coef * inputs.log_ratio.abs().masked_fill(~inputs.is_marked, 0.0)
        return -inputs.advantages * inputs.ratio + penalty

    def check_updates(self, num_updates: int) -> None:
        """Refuses a single one, in which nothing has moved yet."""
        if num_updates == 1:
            raise ValueError(
                "model.loss_type='kl_cov' has no effect with one optimizer step per GRPO step: its penalty is on what has "
                "moved since the step began. Raise model.num_iterations or model.num_minibatches."
            )

    def check(self, settings: HasObjectiveSettings) -> None:
        """Refuses ratios of whole completions."""
        refuse_level(self, settings, "which holds single tokens")
