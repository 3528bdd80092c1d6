"""Losses of pairs: DPO and its relatives, of log ratios summed or per token, and the Bradley-Terry loss of reward models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from grpo_lightning.algorithm.preferences.base import PreferenceLoss, PreferenceScores, delta
from grpo_lightning.algorithm.setting_checks import check_not_negative, refusal


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


@dataclass(frozen=True)
class SigmoidNormLoss(PreferenceLoss):
    """DPO's loss of log ratios per token (TRL's sigmoid_norm; Tulu 3, arXiv:2411.15124).

    Args:
        beta: Larger than for sums by about a completion's length: Tulu 3 has 5.
    """

    def per_example(self, scores: PreferenceScores) -> Tensor:
        """The logistic loss of each pair."""
        return -logsigmoid(self.beta * delta(scores.mean_log_ratios))

    def rewards(self, scores: PreferenceScores) -> Tensor:
        """Of sums, as TRL logs them for every loss."""
        return self.beta * scores.log_ratios


@dataclass(frozen=True)
class SimPOLoss(PreferenceLoss):
    """``-log sigmoid(beta * (logprob per token of chosen - of rejected) - gamma)``, without a reference.

    SimPO, arXiv:2405.14734, Eq. 6.

    Args:
        beta: The paper has 2 to 10.
        simpo_gamma: The margin between the rewards of a pair that is asked for.
    """

    needs_reference: ClassVar[bool] = False
    beta: float = 2.0
    simpo_gamma: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "simpo_gamma")

    def per_example(self, scores: PreferenceScores) -> Tensor:
        """The logistic loss of each pair."""
        return -logsigmoid(delta(self.rewards(scores)) - self.simpo_gamma)

    def rewards(self, scores: PreferenceScores) -> Tensor:
        """``beta`` times the logprob per token."""
        return self.beta * scores.logps / scores.lengths


def bradley_terry_loss(rewards: Tensor, margins: Tensor | None = None, centering: float = 0.0) -> Tensor:
    """``-log sigmoid(chosen - rejected - margin) + centering * (chosen + rejected)^2``, one value per pair.

    The chance that people prefer one text to another grows with the difference of their rewards (Bradley and Terry, 1952).
    Margins are those of Llama 2 (arXiv:2307.09288, Eq. 2); the second term keeps rewards, which the first one leaves free to
    drift, around 0 (arXiv:2312.09244, Eq. 2).

    Args:
        rewards: ``(2P,)``, of pair p the chosen text's at 2p and the rejected one's at 2p + 1; carries gradient.
        margins: ``(P,)``: by how much the chosen one should earn more.
        centering: Weight of the second term.

    Example:
        >>> import torch
        >>> bradley_terry_loss(torch.tensor([1.0, -1.0]), centering=0.5)
        tensor([0.1269])
    """
    gained = delta(rewards)
    loss = -logsigmoid(gained if margins is None else gained - margins)
    return loss + centering * (rewards[0::2] + rewards[1::2]).square() if centering else loss
