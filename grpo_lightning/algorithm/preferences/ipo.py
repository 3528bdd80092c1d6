"""IPO: a margin to reach and not to exceed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from grpo_lightning.algorithm.preferences.base import PreferenceLoss, PreferenceScores, delta


@dataclass(frozen=True)
class IPOLoss(PreferenceLoss):
    """``(margin per token - 1 / (2 beta))^2`` (IPO, arXiv:2310.12036, Eq. 17).

    Log ratios are means over tokens, not sums as the paper has them: its authors confirmed to TRL that their results were
    made so.

    Args:
        beta: The paper's tau: the margin that is aimed at is ``1 / (2 beta)``.
    """

    def per_example(self, scores: PreferenceScores) -> Tensor:
        """The squared distance of each pair from the margin."""
        return (delta(scores.mean_log_ratios) - 1.0 / (2.0 * self.beta)).square()
