"""The advantages of GRPO: rewards compared with those of the same prompt, in standard deviations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_lightning.algorithm.advantages.scored_step import ScoredStep
from grpo_lightning.algorithm.advantages.statistics import STD_EPSILON, batch_std, centre_on_group, group_std
from grpo_lightning.algorithm.advantages.totals import combine_rewards


@dataclass(frozen=True)
class GroupRelative:
    """``(r - group mean) / (std + 1e-4)``; where rewards tell tokens apart, the sum of what follows a token.

    Outcome supervision and process supervision in DeepSeekMath (arXiv:2402.03300, Sec. 4.1.2 and 4.1.3): there each
    reward of a step, such as a turn, is normalised with those of all steps of the group, and a token's advantage is the
    sum of the normalised rewards of the step that it belongs to and of all later ones.

    With ``gamma`` below 1 it is a discounted sum: what the next step that was rewarded brings counts ``gamma`` times.

    Args:
        scale_rewards: group, batch or none: which standard deviation divides.
        gamma: Above 0, at most 1: discount from one rewarded place to the one before, such as from turn to turn.

    Raises:
        ValueError: If gamma is out of range.
    """

    uses_token_rewards = True
    scale_rewards: str = "group"
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(
                f"model.advantages.init_args.gamma={self.gamma} is no discount. Choose a number above 0, at most 1."
            )

    def __call__(self, step: ScoredStep) -> Tensor:
        """``(N,)``, or ``(T,)`` where rewards tell tokens apart."""
        if step.token_rewards is None:
            return sum_then_normalize(step.rewards, step.groups, self.scale_rewards)
        rows = torch.repeat_interleave(torch.arange(len(step.sizes)), step.sizes)
        normalised = sum_then_normalize(step.token_rewards, step.groups[rows], self.scale_rewards)
        sizes = step.sizes.tolist()
        if self.gamma < 1:
            places = (~step.token_rewards.isnan()).split(sizes)
            pairs = zip(normalised.split(sizes), places, strict=True)
            return torch.cat([discounted_to_go(rewards, is_place, self.gamma) for rewards, is_place in pairs])
        return torch.cat([completion.flip(0).cumsum(0).flip(0) for completion in normalised.split(sizes)])


def discounted_to_go(rewards: Tensor, places: Tensor, gamma: float) -> Tensor:
    """``(C,)``: for each token of a completion the rewards at and behind it, discounted once per rewarded place.

    Args:
        rewards: ``(C,)``.
        places: ``(C,)`` bool, True where there is one.
        gamma: Discount.

    Example:
        >>> discounted_to_go(torch.tensor([0.0, 1.0, 0.0, 4.0, 0.0]), torch.tensor([0, 1, 0, 1, 0]).bool(), 0.5)
        tensor([3., 3., 4., 4., 0.])
    """
    result, total, end = torch.zeros_like(rewards), rewards.new_zeros(()), len(rewards)
    for place in reversed(places.nonzero()[:, 0].tolist()):
        result[place + 1 : end] = total
        total, end = rewards[place] + gamma * total, place + 1
    result[:end] = total
    return result


@dataclass(frozen=True)
class NormalizeThenSum:
    """Each reward normalised in its group, the weighted sum of those normalised over the batch (GDPO).

    Args:
        partial_rewards: For rows with some rewards None, as in ``combine_rewards``.
    """

    partial_rewards: str = "sum"

    def __call__(self, step: ScoredStep) -> Tensor:
        """``(N,)``."""
        return normalize_then_sum(step.rewards_per_func, step.groups, step.weights, self.partial_rewards)


def sum_then_normalize(rewards: Tensor, groups: Tensor, scale_rewards: str) -> Tensor:
    """``(N,)``: ``(r - group mean) / (std + 1e-4)``, 0 for a completion without a reward.

    Outcome supervision in DeepSeekMath (arXiv:2402.03300, Sec. 4.1.2). Without the division: Dr. GRPO
    (arXiv:2503.20783). With the batch's standard deviation: PPO Lite (arXiv:2508.08221).

    Args:
        rewards: ``(N,)`` totals, NaN for none.
        groups: ``(N,)``.
        scale_rewards: ``"group"``, ``"batch"`` or ``"none"``.
    """
    centred = centre_on_group(rewards, groups)
    if scale_rewards == "group":
        centred = centred / (group_std(rewards, groups) + STD_EPSILON)
    elif scale_rewards == "batch":
        centred = centred / (batch_std(rewards) + STD_EPSILON)
    return centred.nan_to_num(nan=0.0)


def normalize_then_sum(rewards_per_func: Tensor, groups: Tensor, weights: Tensor, policy: str = "sum") -> Tensor:
    """``(N,)``: each reward normalised in its group, the weighted sum of those normalised over the batch.

    GDPO (arXiv:2601.05242): a reward with a small spread is not drowned by one with a large spread.

    Args:
        rewards_per_func: ``(N, R)``, NaN for None.
        groups: ``(N,)``.
        weights: ``(R,)``.
        policy: For rows with some rewards None, as in :func:`combine_rewards`.
    """
    columns = [sum_then_normalize(column, groups, "group") for column in rewards_per_func.unbind(dim=1)]
    normalised = torch.stack(columns, dim=1).masked_fill(rewards_per_func.isnan(), torch.nan)
    totals = combine_rewards(normalised, weights, policy)
    return ((totals - totals.nanmean()) / (batch_std(totals) + STD_EPSILON)).nan_to_num(nan=0.0)
