"""From the rewards of a completion to its total, where some of them may be None."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lightning.algorithm.advantages.statistics import dense

PARTIAL_POLICIES = ("sum", "renormalize", "drop")


def is_partly_scored(rewards_per_func: Tensor, groups: Tensor, weights: Tensor) -> Tensor:
    """``(N,)`` bool: True for a completion that lacks a reward which another of its group has, and has some other.

    Its total is not comparable with its group's. A reward that is None for the whole group is no difference, nor is
    one of weight 0.

    Args:
        rewards_per_func: ``(N, R)``, NaN for None.
        groups: ``(N,)``.
        weights: ``(R,)``.
    """
    weighted = ~rewards_per_func[:, weights != 0].isnan()
    counts = torch.zeros(weighted.shape, dtype=torch.int64, device=rewards_per_func.device)
    counts = counts.index_add(0, dense(groups), weighted.long())
    lacks = ((counts[dense(groups)] > 0) & ~weighted).any(dim=1)
    return lacks & weighted.any(dim=1)


def combine_rewards(rewards_per_func: Tensor, weights: Tensor, policy: str = "sum") -> Tensor:
    """``(N,)``: the weighted total of each completion's rewards that are not None; NaN where there is none.

    A reward of weight 0 is only watched: with it or without, a completion has the same total. Where all weights are 0, so
    is every total that there is.

    Args:
        rewards_per_func: ``(N, R)``, NaN for None.
        weights: ``(R,)``.
        policy: ``"sum"`` adds what is there, as TRL does. ``"renormalize"`` scales the total up by
            ``sum |w| / sum of |w| of those present``. ``"drop"`` gives NaN to a row that lacks a reward of weight
            other than 0 which any row of the batch has; to judge it by group, see :func:`is_partly_scored`.

    Raises:
        ValueError: If the policy is none of these.

    Example:
        >>> nan = float("nan")
        >>> combine_rewards(torch.tensor([[1.0, 3.0], [1.0, nan]]), torch.tensor([1.0, 0.5]), "renormalize")
        tensor([2.5000, 1.5000])
    """
    present = ~rewards_per_func.isnan()
    counted = present[:, weights != 0] if weights.any() else present
    totals = (rewards_per_func * weights).nansum(dim=1).masked_fill(~counted.any(dim=1), torch.nan)
    if policy == "sum":
        return totals
    if policy == "renormalize":
        shares = (present * weights.abs()).sum(dim=1) / weights.abs().sum()
        return torch.where(present.all(dim=1), totals, totals / shares)
    if policy == "drop":
        one_group = torch.zeros(rewards_per_func.shape[0], dtype=torch.int64, device=rewards_per_func.device)
        return totals.masked_fill(is_partly_scored(rewards_per_func, one_group, weights), torch.nan)
    raise ValueError(f"partial_rewards={policy!r} is unknown. Choose one of {', '.join(PARTIAL_POLICIES)}.")
