"""DAPO: each token weighs the same."""

from __future__ import annotations

from dataclasses import dataclass

from grpo_lightning.algorithm.losses.base import warn_of_sequence_ratio
from grpo_lightning.algorithm.losses.clipped import ClippedLoss
from grpo_lightning.algorithm.setting_checks import HasObjectiveSettings


@dataclass(frozen=True)
class DAPOLoss(ClippedLoss):
    """The clipped surrogate, averaged over all tokens of the step (DAPO, arXiv:2503.14476, Eq. 8)."""

    def check(self, settings: HasObjectiveSettings) -> None:
        """Warns of sequence ratios."""
        warn_of_sequence_ratio(self, settings)
