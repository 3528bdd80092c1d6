"""Totals of rewards and what they report, and the advantages made of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_lightning.algorithm.advantages.statistics import batch_std
from grpo_lightning.algorithm.metric_sums import MetricSums, mean_over


@dataclass(frozen=True)
class TotalRewards:
    """The rewards of N completions, each added up, and how they differ inside groups."""

    rewards: Tensor
    """(N,): weighted totals; NaN for a completion without a reward."""
    group_stds: Tensor
    """(N,): standard deviation of the totals in each completion's group."""
    partly_scored: Tensor
    """(N,) bool: lacks a reward which another completion of its group has."""

    def metrics(self) -> MetricSums:
        """reward, reward_std (over the batch), and shares of completions: of dead groups, partly and not scored."""
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
class Advantages(TotalRewards):
    """Advantages of N completions, or of their T tokens, and the totals that they were made of."""

    advantages: Tensor
    """(N,) or (T,); 0 for a completion without a reward."""
