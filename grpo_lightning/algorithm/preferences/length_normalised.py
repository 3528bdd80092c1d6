"""Losses of log ratios per token: a long completion weighs no more than a short one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from grpo_lightning.algorithm.preferences.base import PreferenceLoss, PreferenceScores, delta
from grpo_lightning.algorithm.setting_checks import check_not_negative


@dataclass(frozen=True)
class SigmoidNormLoss(PreferenceLoss):
    """DPO's loss of log ratios per token (TRL's sigmoid_norm; Tulu 3, arXiv:2411.15124).

    Args:
        beta: Larger than for sums by about a completion's length: Tulu 3 has 5.
    """

    def per_example(self, scores: PreferenceScores) -> Tensor:
        """The logistic loss of each pair."""
        return -logsigmoid(self.beta * delta(scores.mean_log_ratios))

    def rewards(self, scores: PreferenceScores) -> Tensor:
        """Of sums, as TRL logs them for every loss."""
        return self.beta * scores.log_ratios


@dataclass(frozen=True)
class SimPOLoss(PreferenceLoss):
    """``-log sigmoid(beta * (logprob per token of chosen - of rejected) - gamma)``, without a reference.

    SimPO, arXiv:2405.14734, Eq. 6.

    Args:
        beta: The paper has 2 to 10.
        simpo_gamma: The margin between the rewards of a pair that is asked for.
    """

    needs_reference: ClassVar[bool] = False
    beta: float = 2.0
    simpo_gamma: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "simpo_gamma")

    def per_example(self, scores: PreferenceScores) -> Tensor:
        """The logistic loss of each pair."""
        return -logsigmoid(delta(self.rewards(scores)) - self.simpo_gamma)

    def rewards(self, scores: PreferenceScores) -> Tensor:
        """``beta`` times the logprob per token."""
        return self.beta * scores.logps / scores.lengths
