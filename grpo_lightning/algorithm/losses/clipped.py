"""The clipped surrogate of PPO and GRPO, and the losses that differ in how they average it: grpo, dr_grpo, dapo, bnpo, luspo."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grpo_lightning.algorithm.averaging import (
    StepTotals,
    constant_divisor,
    mean_of_completion_means,
    mean_of_completion_sums,
)
from grpo_lightning.algorithm.losses.base import PolicyLoss, warn_of_sequence_ratio
from grpo_lightning.algorithm.metric_sums import MetricSums, maximum_over, mean_over, minimum_over
from grpo_lightning.algorithm.setting_checks import (
    HasObjectiveSettings,
    check_above_zero,
    check_finite,
    check_not_negative,
    refusal,
)
from grpo_lightning.algorithm.token_batch import LossInputs


def clipped_policy_loss(
    ratio: Tensor, advantages: Tensor, epsilon: float, epsilon_high: float, delta: float | None = None
) -> Tensor:
    """Clipped surrogate, ``-min(r * A, clip(r, 1 - epsilon, 1 + epsilon_high) * A)``.

    The policy term of Eq. 3 in DeepSeekMath (arXiv:2402.03300), negated. Separate bounds are DAPO's "Clip-Higher"
    (arXiv:2503.14476, Eq. 8). ``delta`` caps the unclipped ratio from above, which bounds the loss of a bad token
    whose probability has risen (two-sided clipping, INTELLECT-2, arXiv:2505.07291).

    Args:
        ratio: ``(T,)``, carries gradient.
        advantages: ``(T,)``.
        epsilon, epsilon_high: How far the ratio may fall and rise from 1 before a good step stops paying.
        delta: Largest ratio, or None for no cap; above ``1 + epsilon_high`` to matter for bad tokens only.
    """
    clipped = ratio.clamp(1.0 - epsilon, 1.0 + epsilon_high)
    capped = ratio if delta is None else ratio.clamp(max=delta)
    return -torch.minimum(capped * advantages, clipped * advantages)


@dataclass(frozen=True)
class ClippedLoss(PolicyLoss):
    """The clipped surrogate; subclasses say how its tokens are averaged.

    Args:
        epsilon: How far the ratio may fall below 1 before a bad token's gradient stops.
        epsilon_high: The same above 1, for good tokens; None means epsilon.
        delta: Largest ratio in the unclipped term (two-sided clipping); None for no cap.
    """

    needs_advantage: ClassVar[bool] = True
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None

    def __post_init__(self) -> None:
        check_finite(self)
        check_not_negative(self, "epsilon", "epsilon_high")
        check_above_zero(self, "delta")
        if self.delta is not None and self.delta <= 1 + self.upper_epsilon:
            why = f"is not above 1 + epsilon_high = {1 + self.upper_epsilon:g}, so it clips good tokens earlier too."
            warnings.warn(str(refusal(self, "delta", why)), stacklevel=6)

    @property
    def upper_epsilon(self) -> float:
        """epsilon_high where it is set, else epsilon."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    def per_token(self, inputs: LossInputs) -> Tensor:
        """The clipped surrogate."""
        return clipped_policy_loss(inputs.ratio, inputs.advantages, self.epsilon, self.upper_epsilon, self.delta)

    def metrics(self, inputs: LossInputs) -> MetricSums:
        """``clip_ratio/...``: shares that are clipped, below and above."""
        is_low = (inputs.ratio < 1 - self.epsilon) & (inputs.advantages < 0)
        is_high = (inputs.ratio > 1 + self.upper_epsilon) & (inputs.advantages > 0)
        return clip_metrics(inputs, is_low, is_high)


@dataclass(frozen=True)
class GRPOLoss(ClippedLoss):
    """The clipped surrogate, averaged over tokens and then over completions (DeepSeekMath, arXiv:2402.03300, Eq. 3)."""

    known_as: ClassVar[str] = "grpo"

    def token_weights(self, lengths: Tensor, totals: StepTotals) -> Tensor:
        """The mean over completions of the mean over tokens."""
        return mean_of_completion_means(lengths, totals)


@dataclass(frozen=True)
class DrGRPOLoss(ClippedLoss):
    """The clipped surrogate, summed and divided by a constant (Dr. GRPO, arXiv:2503.20783).

    Args:
        max_completion_length: C, tokens; the run's ``model.max_completion_length``.
    """

    known_as: ClassVar[str] = "dr_grpo"
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


@dataclass(frozen=True)
class DAPOLoss(ClippedLoss):
    """The clipped surrogate, averaged over all tokens of the step (DAPO, arXiv:2503.14476, Eq. 8)."""

    known_as: ClassVar[str] = "dapo"

    def check(self, settings: HasObjectiveSettings) -> None:
        """Warns of sequence ratios."""
        warn_of_sequence_ratio(self, settings)


@dataclass(frozen=True)
class BNPOLoss(DAPOLoss):
    """A mean over the tokens of a batch, TRL's name for it: the same as dapo here.

    TRL divides by the tokens of the micro-batch, which makes the gradient depend on how the batch was cut; ours is that
    rule with one micro-batch.
    """

    known_as: ClassVar[str] = "bnpo"


@dataclass(frozen=True)
class LUSPOLoss(ClippedLoss):
    """The clipped surrogate with sequence ratios, each completion weighed by its length (arXiv:2602.05261)."""

    known_as: ClassVar[str] = "luspo"

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


def clip_metrics(inputs: LossInputs, is_low: Tensor, is_high: Tensor) -> MetricSums:
    """``clip_ratio/...`` of tokens clipped below and above; names as in TRL."""
    low, low_shares = clip_shares(inputs, is_low)
    high, high_shares = clip_shares(inputs, is_high)
    region, _ = clip_shares(inputs, is_low | is_high)
    counted = inputs.segments.lengths > 0
    return MetricSums(
        means={"clip_ratio/low_mean": low, "clip_ratio/high_mean": high, "clip_ratio/region_mean": region},
        minima={"clip_ratio/low_min": minimum_over(low_shares, counted)},
        maxima={"clip_ratio/high_max": maximum_over(high_shares, counted)},
    )


def clip_shares(inputs: LossInputs, clipped: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and count of the clipped, and ``(M,)`` the share in each completion.

    Counted are tokens, or completions where the ratio belongs to the completion.

    Args:
        inputs: Of the loss.
        clipped: ``(T,)`` bool.
    """
    flags = clipped.to(inputs.ratio.dtype)
    per_completion = inputs.segments.mean(flags)
    if inputs.level == "token":
        return mean_over(flags, inputs.segments.mask), per_completion
    return mean_over(per_completion, inputs.segments.lengths > 0), per_completion
