"""The advantages of a step: every rank's rewards, compared together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_lightning.algorithm.advantages import (
    AdvantageEstimator,
    AdvantageSpec,
    CompletionTokens,
    combine_rewards,
)
from grpo_lightning.distributed.gather import gather_objects
from grpo_lightning.metrics.step_report import StepReport
from grpo_lightning.rewards import RewardComposition, RewardContractError, RewardTable
from grpo_lightning.types import Rollouts


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


class StepAdvantages:
    """Compares completions over all ranks, and hands each rank its own.

    Args:
        settings: See there.
        composition: How rewards become a total.

    Raises:
        ValueError: If a setting has no effect beside the composition.
    """

    def __init__(self, settings: AdvantageSettings, composition: RewardComposition) -> None:
        self.settings, self.composition = settings, composition
        partial, aggregation = settings.partial_rewards, settings.multi_objective_aggregation
        self.estimate = AdvantageEstimator(settings.scale_rewards, aggregation, partial, settings.advantages)
        if composition.how != "sum" and (partial, aggregation) != ("sum", "sum_then_normalize"):
            raise ValueError(
                f"model.reward_composition.how={composition.how} leaves one number per completion, so that "
                f"model.partial_rewards={partial} or model.multi_objective_aggregation={aggregation} has no effect. Leave "
                "both out."
            )

    @property
    def per_reward(self) -> bool:
        """Whether each reward is normalised for itself."""
        return self.settings.multi_objective_aggregation == "normalize_then_sum"

    def __call__(self, rollouts: Rollouts, rewards: RewardTable, report: StepReport, rank: int = 0) -> Tensor:
        """(N,) advantages, or (T,) where the rule or a reward tells tokens apart; over the completions of all ranks.

        Those of this rank are returned.
        """
        tokens = self.completion_tokens(rollouts, rewards)
        ranks = gather_objects((rewards.values, rollouts.group, rollouts.num_prompts, rewards.metrics, tokens))
        groups, offset = [], 0  # group ids that differ between ranks
        for _, group, num_prompts, metrics, _ in ranks:
            groups.append(group + offset)
            offset += num_prompts
            for name, value in metrics.items():
                report.add_mean(name, torch.tensor([value]))
        rewards_per_func = torch.cat([of_rank for of_rank, *_ in ranks])
        composed, weights = self.composition(rewards_per_func, rewards.names, rewards.weights)
        totals = combine_rewards(composed, weights).split([len(of_rank) for of_rank, *_ in ranks])
        of_all = CompletionTokens.joined([rank_tokens for *_, rank_tokens in ranks], totals)
        result = self.estimate(composed, torch.cat(groups), weights, of_all)
        report.add(result.metrics())
        report.add_rollouts(rollouts)
        report.add_rewards(rewards, rewards_per_func)
        return of_all.split(result.advantages, [rank_tokens for *_, rank_tokens in ranks])[rank].float()

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
