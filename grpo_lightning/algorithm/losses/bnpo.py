"""BNPO, TRL's name for a mean over the tokens of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpo_lightning.algorithm.losses.base import warn_of_sequence_ratio
from grpo_lightning.algorithm.losses.clipped import ClippedLoss

if TYPE_CHECKING:
    from grpo_lightning.algorithm.objective import Objective


@dataclass(frozen=True)
class BNPOLoss(ClippedLoss):
    """The same as dapo here.

    TRL divides by the tokens of the micro-batch, which makes the gradient depend on how the batch was cut; ours is that
    rule with one micro-batch.
    """

    def check(self, settings: Objective) -> None:
        """Warns of sequence ratios."""
        warn_of_sequence_ratio(self, settings)
