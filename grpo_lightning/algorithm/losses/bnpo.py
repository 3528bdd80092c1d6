"""BNPO, TRL's name for a mean over the tokens of a batch."""

from __future__ import annotations

from dataclasses import dataclass

from grpo_lightning.algorithm.losses.base import warn_of_sequence_ratio
from grpo_lightning.algorithm.losses.clipped import ClippedLoss
from grpo_lightning.algorithm.setting_checks import HasObjectiveSettings


@dataclass(frozen=True)
class BNPOLoss(ClippedLoss):
    """The same as dapo here.

    TRL divides by the tokens of the micro-batch, which makes the gradient depend on how the batch was cut; ours is that
    rule with one micro-batch.
    """

    def check(self, settings: HasObjectiveSettings) -> None:
        """Warns of sequence ratios."""
        warn_of_sequence_ratio(self, settings)
