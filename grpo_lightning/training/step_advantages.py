"""Every rank's rewards of a step, together: what is logged of them, and the advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from grpo_lightning.algorithm.advantages import (
    AdvantageEstimator,
    AdvantageSpec,
    CompletionTokens,
    batch_std,
    combine_rewards,
)
from grpo_lightning.algorithm.metric_sums import MetricSums, mean_of
from grpo_lightning.distributed.gather import gather_objects, own_rank
from grpo_lightning.rewards import RewardComposition, RewardContractError, RewardTable
from grpo_lightning.types import Rollouts

Beside = TypeVar("Beside")


@dataclass(frozen=True, kw_only=True)
class AdvantageSettings:
    """How the completions of a prompt are compared.

    Args:
        advantages: How completions are compared: grpo, rloo, reinforce_plus_plus_baseline, opo, maxrl; an import path; or
            class_path and init_args. docs/losses.md has their formulas.
        scale_rewards: With advantages grpo: what they are divided by: the standard deviation of the group, of the batch,
            or none.
        multi_objective_aggregation: sum_then_normalize, or normalize_then_sum (GDPO, arXiv:2601.05242).
        partial_rewards: For a completion that only some rewards scored: sum what is there, renormalize the weights, or
            drop the completion.
    """

    advantages: AdvantageSpec = "grpo"
    scale_rewards: str | bool = "group"
    multi_objective_aggregation: str = "sum_then_normalize"
    partial_rewards: str = "sum"

    @property
    def per_reward(self) -> bool:
        """Whether each reward is normalised for itself."""
        return self.multi_objective_aggregation == "normalize_then_sum"


class StepAdvantages:
    """Compares completions over all ranks, and hands each rank its own.

    Args:
        settings: See there.
        composition: How rewards become a total.

    Raises:
        ValueError: If a setting has no effect beside the composition.
    """

    def __init__(self, settings: AdvantageSettings, composition: RewardComposition) -> None:
        self.composition = composition
        partial, aggregation = settings.partial_rewards, settings.multi_objective_aggregation
        self.estimate = AdvantageEstimator(settings.scale_rewards, aggregation, partial, settings.advantages)
        if composition.how != "sum" and (partial, aggregation) != ("sum", "sum_then_normalize"):
            raise ValueError(
                f"model.reward_composition.how={composition.how} leaves one number per completion, so that "
                f"model.partial_rewards={partial} or model.multi_objective_aggregation={aggregation} has no effect. Leave "
                "both out."
            )

    def __call__(self, rollouts: Rollouts, rewards: RewardTable) -> Tensor:
        """This rank's advantages, compared with the completions of all ranks.

        (N,) float32, or (T,) where the rule or a reward tells tokens apart.
        """
        values, groups, tokens = _over_ranks(rollouts, rewards, self.completion_tokens(rollouts, rewards))
        composed, weights = self.composition(torch.cat(values), rewards.names, rewards.weights)
        totals = combine_rewards(composed, weights).split([len(of_rank) for of_rank in values])
        of_all = CompletionTokens.joined(tokens, totals)
        advantages = self.estimate(composed, groups, weights, of_all).advantages
        return of_all.split(advantages, tokens)[own_rank()[0]].float()

    def reward_metrics(self, rollouts: Rollouts, rewards: RewardTable) -> MetricSums:
        """What is logged of all ranks' rewards and their totals, whatever advantages are made of them."""
        values, groups, told = _over_ranks(rollouts, rewards, rewards.metrics)
        rewards_per_func = torch.cat(values)
        composed, weights = self.composition(rewards_per_func, rewards.names, rewards.weights)
        metrics = self.estimate.totals(composed, groups, weights).metrics()
        metrics += _of_each(rewards_per_func, rewards.names)
        for of_rank in told:
            metrics += MetricSums(means={name: mean_of(torch.tensor([value])) for name, value in of_rank.items()})
        return metrics

    def completion_tokens(self, rollouts: Rollouts, rewards: RewardTable) -> CompletionTokens:
        """Lengths of this rank's completions, and rewards of single tokens where one gave a list.

        Raises:
            RewardContractError: If the composition asks for one number.
        """
        listed = [
            name
            for name, weight in zip(rewards.names, rewards.weights, strict=True)
            if weight and name in rewards.lists
        ]
        if listed and (self.composition.how != "sum" or self.composition.gates):
            raise RewardContractError(
                f"The reward {', '.join(listed)} returned lists, and model.reward_composition looks at one number "
                "per completion. Leave how and gates out, or return one number."
            )
        return CompletionTokens.of(rollouts, rewards.values, rewards.names, rewards.weights, rewards.lists)


def _over_ranks(rollouts: Rollouts, rewards: RewardTable, beside: Beside) -> tuple[list[Tensor], Tensor, list[Beside]]:
    """In one collective: (n, R) scores of each rank, (N,) group ids that differ between ranks, and what each gives beside."""
    ranks = gather_objects((rewards.values, rollouts.group, rollouts.num_prompts, beside))
    groups, offset = [], 0
    for _, group, num_prompts, _ in ranks:
        groups.append(group + offset)
        offset += num_prompts
    return [of_rank for of_rank, *_ in ranks], torch.cat(groups), [of_rank for *_, of_rank in ranks]


def _of_each(rewards_per_func: Tensor, names: Sequence[str]) -> MetricSums:
    """Each reward's mean and standard deviation over (N, R) scores of all ranks, NaN for None."""
    columns = dict(zip(names, rewards_per_func.unbind(dim=1), strict=True))
    means = {f"rewards/{name}/mean": mean_of(column) for name, column in columns.items()}
    spreads = {f"rewards/{name}/std": mean_of(batch_std(column).reshape(1)) for name, column in columns.items()}
    return MetricSums(means=means | spreads)
