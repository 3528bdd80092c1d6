"""DPO, as it is, hinged, and for labels that are sometimes wrong."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from grpo_lightning.algorithm.preferences.base import PreferenceLoss, PreferenceScores, delta
from grpo_lightning.algorithm.setting_checks import refusal


@dataclass(frozen=True)
class SigmoidLoss(PreferenceLoss):
    """``-log sigmoid(beta * (log ratio of chosen - log ratio of rejected))`` (DPO, arXiv:2305.18290, Eq. 7).

    Args:
        beta: How strongly the policy is held to the reference.
    """

    def per_example(self, scores: PreferenceScores) -> Tensor:
        """The logistic loss of each pair."""
        return -logsigmoid(self.beta * delta(scores.log_ratios))


@dataclass(frozen=True)
class HingeLoss(PreferenceLoss):
    """``max(0, 1 - beta * margin)``: pairs that are far enough apart teach nothing (SLiC, arXiv:2305.10425; RSO,
    arXiv:2309.06657).

    Args:
        beta: The inverse of the margin that is asked for.
    """

    def per_example(self, scores: PreferenceScores) -> Tensor:
        """The hinge of each pair."""
        return torch.relu(1.0 - self.beta * delta(scores.log_ratios))


@dataclass(frozen=True)
class RobustLoss(PreferenceLoss):
    """DPO's loss, freed of the bias that a share of flipped labels has (Robust DPO, arXiv:2403.00409).

    Args:
        beta: As for sigmoid.
        label_smoothing: The share of pairs in [0, 0.5) that are believed to be labelled the wrong way round.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 0.5:
            raise refusal(self, "label_smoothing", "is no share of flipped labels in [0, 0.5).")

    def per_example(self, scores: PreferenceScores) -> Tensor:
        """The corrected logistic loss of each pair; it may be negative."""
        logits = self.beta * delta(scores.log_ratios)
        kept, flipped = -logsigmoid(logits), -logsigmoid(-logits)
        share = self.label_smoothing
        return ((1.0 - share) * kept - share * flipped) / (1.0 - 2.0 * share)
