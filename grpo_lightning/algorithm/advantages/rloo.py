"""RLOO: the baseline of a completion is the mean of the others."""

from __future__ import annotations

from torch import Tensor

from grpo_lightning.algorithm.advantages.scored_step import ScoredStep
from grpo_lightning.algorithm.advantages.statistics import centre_on_group, group_count


def rloo(step: ScoredStep) -> Tensor:
    """``(N,)``: ``r`` minus the mean of the group's other rewards, 0 for a completion alone (arXiv:2402.14740).

    That is ``n / (n - 1)`` times the distance to the group's mean.
    """
    count = group_count(step.rewards, step.groups)
    return centre_on_group(step.rewards, step.groups) * count / (count - 1).clamp(min=1)
