"""Rules of advantages that are a formula: other baselines and scales than the mean and the deviation of the group."""

from __future__ import annotations

from torch import Tensor

from grpo_lightning.algorithm.advantages.scored_step import ScoredStep
from grpo_lightning.algorithm.advantages.statistics import (
    centre_on_group,
    group_count,
    group_mean,
    group_sum,
    is_unanimous,
)

MEAN_EPSILON = 1e-6
"""Added by ``maxrl`` to the mean reward before dividing by it, as the authors do."""


def rloo(step: ScoredStep) -> Tensor:
    """``(N,)``: ``r`` minus the mean of the group's other rewards, 0 for a completion alone (arXiv:2402.14740).

    That is ``n / (n - 1)`` times the distance to the group's mean.
    """
    count = group_count(step.rewards, step.groups)
    return centre_on_group(step.rewards, step.groups) * count / (count - 1).clamp(min=1)


def reinforce_plus_plus_baseline(step: ScoredStep) -> Tensor:
    """``(N,)``: distance to the group's mean, minus its mean over all tokens of the step, over its deviation there.

    REINFORCE++ with baseline (arXiv:2501.03262), as its authors compute it: every token counts once, so that a
    completion weighs by its length; population variance, at least 1e-8. With groups of one size a leave-one-out baseline
    gives the same, since the factor ``n / (n - 1)`` cancels.
    """
    centred = centre_on_group(step.rewards, step.groups)
    tokens = step.lengths * ~centred.isnan()
    known = centred.nan_to_num(nan=0.0)
    mean = (known * tokens).sum() / tokens.sum().clamp(min=1)
    variance = ((known - mean).square() * tokens).sum() / tokens.sum().clamp(min=1)
    return (centred - mean) / variance.clamp(min=1e-8).sqrt()


def opo(step: ScoredStep) -> Tensor:
    """``(N,)``: ``r`` minus the group's mean weighted by length, ``sum(l * r) / sum(l)`` (OPO, arXiv:2505.23585)."""
    lengths = step.lengths.to(step.rewards.dtype).masked_fill(step.rewards.isnan(), 0.0)
    baseline = group_sum(lengths * step.rewards, step.groups) / group_sum(lengths, step.groups).clamp(min=1)
    return (step.rewards - baseline).masked_fill(is_unanimous(step.rewards, step.groups), 0.0)


def maxrl(step: ScoredStep) -> Tensor:
    """``(N,)``: ``(r - group mean) / (group mean + 1e-6)`` (MaxRL, arXiv:2602.02710), for rewards from 0 to 1.

    Raises:
        ValueError: If a group's mean is negative: the sign of its advantages would be turned.
    """
    mean = group_mean(step.rewards, step.groups)
    if bool((mean < 0).any()):
        raise ValueError(
            f"model.advantages='maxrl' divides by the mean reward of a group, which is {float(mean.nan_to_num(0).min()):g} "
            "for one of them. Use rewards that are never negative, such as 0 and 1."
        )
    return centre_on_group(step.rewards, step.groups) / (mean + MEAN_EPSILON)
