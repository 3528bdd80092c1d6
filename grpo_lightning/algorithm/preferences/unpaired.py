"""Losses of single completions that people like or dislike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grpo_lightning.algorithm.preferences.base import PreferenceLoss, PreferenceScores
from grpo_lightning.algorithm.setting_checks import check_above_zero


@dataclass(frozen=True)
class WeightedLoss(PreferenceLoss):
    """What both have: weights of the two kinds of completions.

    Args:
        beta: How strongly the policy is held to the reference.
        desirable_weight: Factor of the loss of completions that people like.
        undesirable_weight: Factor of that of the others. KTO's authors set the two so that weight times number of
            completions is about the same for both.
    """

    in_pairs: ClassVar[bool] = False
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(self, "desirable_weight", "undesirable_weight")

    def weighted(self, liked: Tensor, disliked: Tensor, is_chosen: Tensor) -> Tensor:
        """``(M,)``: of each completion the loss of its kind, times that kind's weight."""
        return torch.where(is_chosen, self.desirable_weight * liked, self.undesirable_weight * disliked)


@dataclass(frozen=True)
class KTOLoss(WeightedLoss):
    """``1 - sigmoid(beta * (log ratio - kl))`` of what people like, with the sign turned round of what they do not.

    KTO, arXiv:2402.01306, Eq. 7; the reference point is the KL divergence, estimated from completions of other prompts.
    """

    needs_kl: ClassVar[bool] = True

    def per_example(self, scores: PreferenceScores) -> Tensor:
        """One minus the value of each completion."""
        gained = self.beta * (scores.log_ratios - scores.kl)
        return self.weighted(1.0 - gained.sigmoid(), 1.0 - (-gained).sigmoid(), scores.is_chosen)


@dataclass(frozen=True)
class APOZeroUnpairedLoss(WeightedLoss):
    """KTO's loss with 0 as the reference point, for completions better than the policy's own.

    APO-zero, arXiv:2408.06266, Eq. 7.
    """

    def per_example(self, scores: PreferenceScores) -> Tensor:
        """The logistic value of each completion."""
        gained = self.beta * scores.log_ratios
        return self.weighted(1.0 - gained.sigmoid(), gained.sigmoid(), scores.is_chosen)
