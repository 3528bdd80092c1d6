"""MaxRL: prompts that are rarely solved count for more."""

from __future__ import annotations

from torch import Tensor

from grpo_lightning.algorithm.advantages.scored_step import ScoredStep
from grpo_lightning.algorithm.advantages.statistics import centre_on_group, group_mean

MEAN_EPSILON = 1e-6
"""Added to the mean reward before dividing by it, as the authors do."""


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
