"""Rewards to advantages: how much better each completion is than the others of its group.

All functions see the completions of the whole step, of every rank. A group is told by its id, never by its place. NaN
stands for a reward that is None. Standard deviations are those of a sample (divisor n - 1); with fewer than two
rewards they are 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_lightning.algorithm.metric_sums import MetricSums, mean_over

STD_EPSILON = 1e-4
"""Added to a standard deviation before dividing by it, as in TRL."""
SCALES = ("group", "batch", "none")
AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")
PARTIAL_POLICIES = ("sum", "renormalize", "drop")


def group_mean(values: Tensor, groups: Tensor) -> Tensor:
    """``(N,)``: the mean of each completion's group over the values that are not NaN; NaN where there is none.

    Args:
        values: ``(N,)`` floating point.
        groups: ``(N,)`` integers, any ids.
    """
    index, present = _dense(groups), ~values.isnan()
    sums = torch.zeros_like(values).index_add(0, index, values.nan_to_num(nan=0.0))
    counts = torch.zeros_like(values).index_add(0, index, present.to(values.dtype))
    return (sums / counts)[index]


def group_std(values: Tensor, groups: Tensor) -> Tensor:
    """``(N,)``: the sample standard deviation of each completion's group; 0 with fewer than two values.

    Exactly 0 where all values of the group are equal, though their mean may be off by a rounding.
    """
    index, present = _dense(groups), ~values.isnan()
    deviations = (values - group_mean(values, groups)).nan_to_num(nan=0.0)
    squares = torch.zeros_like(values).index_add(0, index, deviations.square())
    counts = torch.zeros_like(values).index_add(0, index, present.to(values.dtype))
    std = (squares / (counts - 1).clamp(min=1)).sqrt()[index]
    return std.masked_fill(is_unanimous(values, groups), 0.0)


def is_unanimous(values: Tensor, groups: Tensor) -> Tensor:
    """``(N,)`` bool: True where the group's values that are not NaN are all equal, or fewer than two."""
    index = _dense(groups)
    lowest = torch.full_like(values, torch.inf).scatter_reduce(0, index, values.nan_to_num(nan=torch.inf), "amin")
    highest = torch.full_like(values, -torch.inf).scatter_reduce(0, index, values.nan_to_num(nan=-torch.inf), "amax")
    return (lowest >= highest)[index]


def batch_std(values: Tensor) -> Tensor:
    """Scalar: the sample standard deviation of the values that are not NaN; 0 with fewer than two."""
    present = values[~values.isnan()]
    return present.std() if present.numel() > 1 else values.new_zeros(())


def centre_on_group(values: Tensor, groups: Tensor) -> Tensor:
    """``(N,)``: values minus their group's mean; exactly 0 in a unanimous group, NaN stays NaN."""
    centred = values - group_mean(values, groups)
    return centred.masked_fill(is_unanimous(values, groups) & ~values.isnan(), 0.0)


def is_partly_scored(values: Tensor, groups: Tensor, weights: Tensor) -> Tensor:
    """``(N,)`` bool: True for a completion that lacks a reward which another of its group has, and has some other.

    Its total is not comparable with its group's. A reward that is None for the whole group is no difference, nor is
    one of weight 0.

    Args:
        values: ``(N, R)``, NaN for None.
        groups: ``(N,)``.
        weights: ``(R,)``.
    """
    weighted = ~values[:, weights != 0].isnan()
    counts = torch.zeros(weighted.shape, dtype=torch.int64, device=values.device)
    counts = counts.index_add(0, _dense(groups), weighted.long())
    lacks = ((counts[_dense(groups)] > 0) & ~weighted).any(dim=1)
    return lacks & ~values.isnan().all(dim=1)


def combine_rewards(values: Tensor, weights: Tensor, policy: str = "sum") -> Tensor:
    """``(N,)``: the weighted total of each completion's rewards that are not None; NaN where there is none.

    Args:
        values: ``(N, R)``, NaN for None.
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
    present = ~values.isnan()
    totals = (values * weights).nansum(dim=1).masked_fill(~present.any(dim=1), torch.nan)
    if policy == "sum":
        return totals
    if policy == "renormalize":
        shares = (present * weights.abs()).sum(dim=1) / weights.abs().sum()
        return torch.where(present.all(dim=1), totals, totals / shares)
    if policy == "drop":
        one_group = torch.zeros(values.shape[0], dtype=torch.int64, device=values.device)
        return totals.masked_fill(is_partly_scored(values, one_group, weights), torch.nan)
    raise ValueError(f"partial_rewards={policy!r} is unknown. Choose one of {', '.join(PARTIAL_POLICIES)}.")


@dataclass(frozen=True)
class Advantages:
    """Advantages of N completions and what they were made of."""

    advantages: Tensor
    """(N,); 0 for a completion without a reward."""
    rewards: Tensor
    """(N,): weighted totals; NaN for a completion without a reward."""
    group_stds: Tensor
    """(N,): standard deviation of the totals in each completion's group."""
    partly_scored: Tensor
    """(N,) bool: lacks a reward which another completion of its group has."""

    def metrics(self) -> MetricSums:
        """reward, reward_std (over the batch), and shares of completions: without spread, partly and not scored."""
        scored = ~self.rewards.isnan()
        everyone = torch.ones_like(scored)

        def share(flags: Tensor) -> Tensor:
            return mean_over(flags.to(self.rewards.dtype), everyone)

        spread = torch.stack([batch_std(self.rewards), self.rewards.new_ones(())])
        means = {
            "reward": mean_over(self.rewards, scored),
            "reward_std": spread,
            "reward_group_std": mean_over(self.group_stds, everyone),
            "frac_reward_zero_std": share(self.group_stds == 0),
            "frac_reward_partly_none": share(self.partly_scored),
            "frac_reward_none": share(~scored),
        }
        return MetricSums(means=means)


@dataclass(frozen=True)
class AdvantageEstimator:
    """Settings of the advantages, with TRL's names and defaults, and the estimate itself.

    Example:
        >>> estimate = AdvantageEstimator(scale_rewards="none")
        >>> estimate(torch.tensor([[1.0], [0.0], [5.0], [5.0]]), torch.tensor([0, 0, 1, 1]), torch.ones(1)).advantages
        tensor([ 0.5000, -0.5000,  0.0000,  0.0000])
    """

    scale_rewards: str | bool = "group"
    """Divide by the standard deviation of the group (group or True), of the batch (batch), or not (none or False)."""
    multi_objective_aggregation: str = "sum_then_normalize"
    """Add rewards and compare totals (sum_then_normalize), or compare each reward first (normalize_then_sum, GDPO)."""
    partial_rewards: str = "sum"
    """A completion with some rewards None: sum (add what is there, as TRL), renormalize (scale up) or drop."""

    def __post_init__(self) -> None:
        if isinstance(self.scale_rewards, bool):
            object.__setattr__(self, "scale_rewards", "group" if self.scale_rewards else "none")
        choices = {
            "scale_rewards": SCALES,
            "multi_objective_aggregation": AGGREGATIONS,
            "partial_rewards": PARTIAL_POLICIES,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"model.{name}={getattr(self, name)!r} is unknown. Choose one of {', '.join(known)}.")
        if self.multi_objective_aggregation == "normalize_then_sum" and self.scale_rewards != "group":
            raise ValueError(
                f"model.scale_rewards={self.scale_rewards!r} has no effect with "
                "model.multi_objective_aggregation='normalize_then_sum', which always divides by the standard "
                "deviation of the group and then of the batch. Remove one of the two."
            )

    def __call__(self, values: Tensor, groups: Tensor, weights: Tensor) -> Advantages:
        """Advantages of the whole step's completions; computed in float64, returned in the dtype of ``values``.

        Args:
            values: ``(N, R)`` rewards, NaN for None, N over all ranks.
            groups: ``(N,)`` integers: completions with the same id are compared; ids differ between ranks.
            weights: ``(R,)``, one per reward.
        """
        dtype, values, weights = values.dtype, values.double(), weights.double()
        partly_scored = is_partly_scored(values, groups, weights)
        policy = self.partial_rewards
        if policy == "drop":
            values, policy = values.masked_fill(partly_scored.unsqueeze(1), torch.nan), "sum"
        rewards = combine_rewards(values, weights, policy)
        if self.multi_objective_aggregation == "sum_then_normalize":
            advantages = sum_then_normalize(rewards, groups, str(self.scale_rewards))
        else:
            advantages = normalize_then_sum(values, groups, weights, policy)
        return Advantages(advantages.to(dtype), rewards.to(dtype), group_std(rewards, groups).to(dtype), partly_scored)


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


def normalize_then_sum(values: Tensor, groups: Tensor, weights: Tensor, policy: str = "sum") -> Tensor:
    """``(N,)``: each reward normalised in its group, the weighted sum of those normalised over the batch.

    GDPO (arXiv:2601.05242): a reward with a small spread is not drowned by one with a large spread.

    Args:
        values: ``(N, R)``, NaN for None.
        groups: ``(N,)``.
        weights: ``(R,)``.
        policy: For rows with some rewards None, as in :func:`combine_rewards`.
    """
    columns = [sum_then_normalize(column, groups, "group") for column in values.unbind(dim=1)]
    normalised = torch.stack(columns, dim=1).masked_fill(values.isnan(), torch.nan)
    totals = combine_rewards(normalised, weights, policy)
    return ((totals - totals.nanmean()) / (batch_std(totals) + STD_EPSILON)).nan_to_num(nan=0.0)


def _dense(groups: Tensor) -> Tensor:
    """``(N,)`` int64: the groups renumbered from 0, so that they can index."""
    return torch.unique(groups, return_inverse=True)[1]
