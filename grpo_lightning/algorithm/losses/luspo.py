"""LUSPO: each completion weighs by its length."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import Tensor

from grpo_lightning.algorithm.averaging import StepTotals, mean_of_completion_sums
from grpo_lightning.algorithm.losses.clipped import ClippedLoss
from grpo_lightning.algorithm.setting_checks import HasObjectiveSettings


@dataclass(frozen=True)
class LUSPOLoss(ClippedLoss):
    """The clipped surrogate with sequence ratios, each completion weighed by its length (arXiv:2602.05261)."""

    def token_weights(self, lengths: Tensor, totals: StepTotals) -> Tensor:
        """The mean over completions of the sum over tokens."""
        return mean_of_completion_sums(lengths, totals)

    def check(self, settings: HasObjectiveSettings) -> None:
        """Warns of token ratios."""
        if settings.importance_sampling_level == "token":
            warnings.warn(
                "model.loss_type='luspo' is defined for sequence ratios: set "
                "model.importance_sampling_level='sequence'.",
                stacklevel=5,
            )
