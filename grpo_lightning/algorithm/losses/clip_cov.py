"""Clip-Cov: a few of the tokens that drive entropy down are left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grpo_lightning.algorithm.losses.base import warn_of_sequence_ratio
from grpo_lightning.algorithm.losses.clipped import ClippedLoss
from grpo_lightning.algorithm.losses.covariance import token_covariance
from grpo_lightning.algorithm.metric_sums import MetricSums, mean_over
from grpo_lightning.algorithm.setting_checks import HasObjectiveSettings, check_above_zero, refusal
from grpo_lightning.algorithm.token_batch import LossInputs


@dataclass(frozen=True)
class ClipCovLoss(ClippedLoss):
    """The clipped surrogate of dapo without some tokens of high covariance (Clip-Cov, arXiv:2505.22617).

    They are drawn at random, once per step over all ranks, by their logprobs at the weights that start the step.

    Args:
        epsilon, epsilon_high, delta: As for dapo.
        clip_cov_ratio: Share of the step's tokens that is drawn; at least one token.
        clip_cov_min, clip_cov_max: Covariance, in nats times advantage, between which tokens may be drawn.
    """

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
