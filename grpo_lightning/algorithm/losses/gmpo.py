"""GMPO: the geometric mean of a completion's clipped ratios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grpo_lightning.algorithm.averaging import StepTotals, mean_of_completion_means
from grpo_lightning.algorithm.losses.base import PolicyLoss, refuse_level
from grpo_lightning.algorithm.losses.clipped import clip_metrics
from grpo_lightning.algorithm.metric_sums import MetricSums
from grpo_lightning.algorithm.setting_checks import HasObjectiveSettings, check_finite, check_not_negative, refusal
from grpo_lightning.algorithm.token_batch import LossInputs


@dataclass(frozen=True)
class GMPOLoss(PolicyLoss):
    """``-A * exp(mean of clipped log ratios)``, each completion weighing the same (GMPO, arXiv:2507.20673).

    The log ratio of a token is clipped before the mean, on the side that its advantage would push it to.

    Args:
        epsilon: How far the log ratio of a bad token may fall, in nats.
        epsilon_high: How far that of a good token may rise; None means epsilon.
    """

    known_as: ClassVar[str] = "gmpo"
    needs_advantage: ClassVar[bool] = True
    epsilon: float = 0.4
    epsilon_high: float | None = None

    def __post_init__(self) -> None:
        check_finite(self)
        check_not_negative(self, "epsilon", "epsilon_high")

    @property
    def upper_epsilon(self) -> float:
        """epsilon_high where it is set, else epsilon."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    def per_token(self, inputs: LossInputs) -> Tensor:
        """The completion's value, on each of its tokens."""
        log_ratio, good = inputs.log_ratio, inputs.advantages > 0
        clipped = torch.where(good, log_ratio.clamp(max=self.upper_epsilon), log_ratio.clamp(min=-self.epsilon))
        return -inputs.segments.spread(inputs.segments.mean(clipped).exp()) * inputs.advantages

    def token_weights(self, lengths: Tensor, totals: StepTotals) -> Tensor:
        """The mean over completions of their value."""
        return mean_of_completion_means(lengths, totals)

    def metrics(self, inputs: LossInputs) -> MetricSums:
        """``clip_ratio/...``: shares of tokens that are clipped."""
        is_low = (inputs.log_ratio < -self.epsilon) & (inputs.advantages < 0)
        return clip_metrics(inputs, is_low, (inputs.log_ratio > self.upper_epsilon) & (inputs.advantages > 0))

    def check(self, settings: HasObjectiveSettings) -> None:
        """Refuses what would treat the tokens of a completion differently."""
        refuse_level(self, settings, "which takes the geometric mean itself")
        why = "treats tokens differently, but model.loss_type='gmpo' has one value per completion."
        if settings.top_entropy_quantile < 1:
            raise refusal(settings, "top_entropy_quantile", why)
        if settings.importance_sampling_correction and settings.importance_sampling_mode.startswith("token"):
            raise refusal(settings, "importance_sampling_mode", f"{why} Choose a sequence_ or geometric_ mode.")
