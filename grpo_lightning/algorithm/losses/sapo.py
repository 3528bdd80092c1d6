"""SAPO: a soft gate instead of a clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grpo_lightning.algorithm.averaging import StepTotals, mean_of_completion_means
from grpo_lightning.algorithm.losses.base import PolicyLoss
from grpo_lightning.algorithm.setting_checks import check_above_zero, check_finite
from grpo_lightning.algorithm.token_batch import LossInputs


def sapo_policy_loss(ratio: Tensor, advantages: Tensor, temperature_pos: float, temperature_neg: float) -> Tensor:
    """``-(4 / tau) * sigmoid(tau * (r - 1)) * A``: a soft gate instead of a clip (SAPO, arXiv:2511.20347).

    At ``r = 1`` the slope in r is A, as in the unclipped surrogate, and it fades smoothly on either side.

    Args:
        ratio: ``(T,)``, carries gradient.
        advantages: ``(T,)``.
        temperature_pos, temperature_neg: tau where A > 0 and elsewhere; larger closes the gate sooner.
    """
    tau = torch.full_like(advantages, temperature_neg).masked_fill(advantages > 0, temperature_pos)
    return -torch.sigmoid(tau * (ratio - 1.0)) * 4.0 / tau * advantages


@dataclass(frozen=True)
class SAPOLoss(PolicyLoss):
    """SAPO (arXiv:2511.20347), each completion weighing the same.

    Args:
        sapo_temperature_pos: Sharpness of the gate for tokens with positive advantage.
        sapo_temperature_neg: Sharpness of the gate for the others.
    """

    known_as: ClassVar[str] = "sapo"
    needs_advantage: ClassVar[bool] = True
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05

    def __post_init__(self) -> None:
        check_finite(self)
        check_above_zero(self, "sapo_temperature_pos", "sapo_temperature_neg")

    def per_token(self, inputs: LossInputs) -> Tensor:
        """The gated surrogate."""
        temperatures = self.sapo_temperature_pos, self.sapo_temperature_neg
        return sapo_policy_loss(inputs.ratio, inputs.advantages, *temperatures)

    def token_weights(self, lengths: Tensor, totals: StepTotals) -> Tensor:
        """The mean over completions of the mean over tokens."""
        return mean_of_completion_means(lengths, totals)
