"""The rewards of a step as they are compared: those of every rank, in one collective, each completion's composed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from grpo_lightning.algorithm.advantages import CompletionTokens, batch_std, combine_rewards
from grpo_lightning.algorithm.metric_sums import MetricSums, mean_of
from grpo_lightning.distributed.gather import gather_objects, own_rank
from grpo_lightning.rewards import RewardComposition, RewardContractError, RewardTable
from grpo_lightning.types import Rollouts


@dataclass(frozen=True)
class StepRewards:
    """This rank's table, and the N completions of all ranks. On the CPU."""

    own: RewardTable
    """Of this rank's completions alone."""
    given: Tensor
    """(N, R) float64: each reward as it was given; NaN for None."""
    composed: Tensor
    """(N, K): what the composition makes of them, whose weighted sum is the total."""
    composed_weights: Tensor
    """(K,): the weights of that sum."""
    groups: Tensor
    """(N,) int64: completions with the same id are compared; ids differ between ranks."""
    tokens: CompletionTokens
    """Of all N."""
    of_ranks: Sequence[CompletionTokens]
    """The same of each rank."""
    told: Sequence[dict[str, float]]
    """What the rewards of each rank say of themselves."""

    @property
    def values(self) -> Tensor:
        """(n, R) rewards of this rank's completions, NaN for None."""
        return self.own.values

    @property
    def names(self) -> tuple[str, ...]:
        """The R rewards."""
        return self.own.names

    @property
    def weights(self) -> Tensor:
        """(R,): the weights as they were given."""
        return self.own.weights

    @property
    def metrics(self) -> dict[str, float]:
        """What this rank's rewards say of themselves."""
        return self.own.metrics

    @property
    def lists(self) -> dict[str, list[tuple[float, ...] | None]]:
        """Of this rank's rewards that told tokens or turns apart."""
        return self.own.lists

    @property
    def extra(self) -> dict[str, list[Any]]:
        """Columns that this rank's rewards logged."""
        return self.own.extra

    @classmethod
    def together(cls, rollouts: Rollouts, table: RewardTable, composition: RewardComposition) -> StepRewards:
        """Those of all ranks, from this rank's.

        Args:
            rollouts: This rank's n completions.
            table: Their rewards.
            composition: How these become a total.

        Raises:
            RewardContractError: If a reward gave a list, and the composition asks for one number.
        """
        _check_lists(table, composition)
        tokens = CompletionTokens.of(rollouts, table.values, table.names, table.weights, table.lists)
        ranks = gather_objects((table.values, rollouts.group, rollouts.num_prompts, tokens, table.metrics))
        values, groups, num_prompts, of_ranks, told = zip(*ranks, strict=True)
        given = torch.cat(values)
        composed, weights = composition(given, table.names, table.weights)
        totals = combine_rewards(composed, weights).split([len(of_rank) for of_rank in values])
        ids = torch.cat(
            [group + offset for group, offset in zip(groups, accumulate(num_prompts, initial=0), strict=False)]
        )
        joined = CompletionTokens.joined(of_ranks, totals)
        return cls(table, given, composed, weights, ids, joined, of_ranks, told)

    def of_own_rank(self, advantages: Tensor) -> Tensor:
        """This rank's part of (N,) or (T,) of all."""
        return self.tokens.split(advantages, self.of_ranks)[own_rank()[0]]

    def summed_metrics(self) -> MetricSums:
        """Each reward's mean and standard deviation over all ranks, and what rewards say of themselves."""
        columns = dict(zip(self.names, self.given.unbind(dim=1), strict=True))
        means = {f"rewards/{name}/mean": mean_of(column) for name, column in columns.items()}
        spreads = {f"rewards/{name}/std": mean_of(batch_std(column).reshape(1)) for name, column in columns.items()}
        metrics = MetricSums(means=means | spreads)
        for of_rank in self.told:
            metrics += MetricSums(means={name: mean_of(torch.tensor([value])) for name, value in of_rank.items()})
        return metrics


def _check_lists(table: RewardTable, composition: RewardComposition) -> None:
    listed = [name for name, weight in zip(table.names, table.weights, strict=True) if weight and name in table.lists]
    if listed and (composition.how != "sum" or composition.gates):
        raise RewardContractError(
            f"The reward {', '.join(listed)} returned lists, and model.reward_composition looks at one number "
            "per completion. Leave how and gates out, or return one number."
        )
