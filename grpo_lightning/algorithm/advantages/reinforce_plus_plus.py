"""REINFORCE++ with baseline: compared inside the group, normalised over the batch."""

from __future__ import annotations

from torch import Tensor

from grpo_lightning.algorithm.advantages.scored_step import ScoredStep
from grpo_lightning.algorithm.advantages.statistics import centre_on_group


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
