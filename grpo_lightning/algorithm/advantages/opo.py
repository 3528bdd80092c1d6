"""OPO: the baseline with the least variance, where the gradient of a completion grows with its length."""

from __future__ import annotations

from torch import Tensor

from grpo_lightning.algorithm.advantages.scored_step import ScoredStep
from grpo_lightning.algorithm.advantages.statistics import group_sum, is_unanimous


def opo(step: ScoredStep) -> Tensor:
    """``(N,)``: ``r`` minus the group's mean weighted by length, ``sum(l * r) / sum(l)`` (OPO, arXiv:2505.23585)."""
    lengths = step.lengths.to(step.rewards.dtype).masked_fill(step.rewards.isnan(), 0.0)
    baseline = group_sum(lengths * step.rewards, step.groups) / group_sum(lengths, step.groups).clamp(min=1)
    return (step.rewards - baseline).masked_fill(is_unanimous(step.rewards, step.groups), 0.0)
