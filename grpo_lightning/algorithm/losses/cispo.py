"""CISPO: the weight of a token is clipped, its gradient never stops."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from grpo_lightning.algorithm.losses.base import PolicyLoss, warn_of_sequence_ratio
from grpo_lightning.algorithm.losses.clipped import clip_shares
from grpo_lightning.algorithm.metric_sums import MetricSums
from grpo_lightning.algorithm.setting_checks import HasObjectiveSettings, check_finite, check_not_negative, refusal
from grpo_lightning.algorithm.token_batch import LossInputs


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


@dataclass(frozen=True)
class CISPOLoss(PolicyLoss):
    """CISPO (MiniMax-M1, arXiv:2506.13585), averaged over all tokens of the step.

    Args:
        epsilon_high: The largest weight itself, not a distance from 1; it has to be given, about 5.0.
    """

    known_as: ClassVar[str] = "cispo"
    needs_advantage: ClassVar[bool] = True
    epsilon_high: float | None = None

    def __post_init__(self) -> None:
        check_finite(self)
        check_not_negative(self, "epsilon_high")
        if self.epsilon_high is None:
            why = "cannot be left out with model.loss_type='cispo', where it is the largest weight itself, not a "
            raise refusal(self, "epsilon_high", why + "distance from 1. The papers use about 5.0.")
        if self.epsilon_high < 1:
            why = "is the largest weight with model.loss_type='cispo': below 1 it scales down every on-policy token"
            warnings.warn(str(refusal(self, "epsilon_high", why + ". The papers use about 5.0.")), stacklevel=6)

    def per_token(self, inputs: LossInputs) -> Tensor:
        """The weighted logprob."""
        assert self.epsilon_high is not None  # __post_init__
        return cispo_policy_loss(inputs.logprobs, inputs.ratio, inputs.advantages, self.epsilon_high)

    def metrics(self, inputs: LossInputs) -> MetricSums:
        """``cispo_clip_ratio``: the share of good tokens whose weight is clipped."""
        assert self.epsilon_high is not None  # __post_init__
        mean, _ = clip_shares(inputs, (inputs.ratio > self.epsilon_high) & (inputs.advantages > 0))
        return MetricSums(means={"cispo_clip_ratio": mean})

    def check(self, settings: HasObjectiveSettings) -> None:
        """Warns of sequence ratios."""
        warn_of_sequence_ratio(self, settings)
