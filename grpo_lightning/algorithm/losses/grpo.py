"""GRPO: each completion weighs the same."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from grpo_lightning.algorithm.averaging import StepTotals, mean_of_completion_means
from grpo_lightning.algorithm.losses.clipped import ClippedLoss


@dataclass(frozen=True)
class GRPOLoss(ClippedLoss):
    """The clipped surrogate, averaged over tokens and then over completions (DeepSeekMath, arXiv:2402.03300, Eq. 3)."""

    def token_weights(self, lengths: Tensor, totals: StepTotals) -> Tensor:
        """The mean over completions of the mean over tokens."""
        return mean_of_completion_means(lengths, totals)
