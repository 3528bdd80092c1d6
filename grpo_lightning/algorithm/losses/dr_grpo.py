"""Dr. GRPO: length has no influence."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from grpo_lightning.algorithm.averaging import StepTotals, constant_divisor
from grpo_lightning.algorithm.losses.base import warn_of_sequence_ratio
from grpo_lightning.algorithm.losses.clipped import ClippedLoss
from grpo_lightning.algorithm.setting_checks import HasObjectiveSettings, check_above_zero


@dataclass(frozen=True)
class DrGRPOLoss(ClippedLoss):
    """The clipped surrogate, summed and divided by a constant (Dr. GRPO, arXiv:2503.20783).

    Args:
        max_completion_length: C, tokens; the run's ``model.max_completion_length``.
    """

    max_completion_length: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero(self, "max_completion_length")

    def token_weights(self, lengths: Tensor, totals: StepTotals) -> Tensor:
        """``1 / (N * C)``."""
        return constant_divisor(lengths, totals, self.max_completion_length)

    def check(self, settings: HasObjectiveSettings) -> None:
        """Warns of sequence ratios."""
        warn_of_sequence_ratio(self, settings)
