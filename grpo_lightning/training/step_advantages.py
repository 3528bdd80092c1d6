"""The advantages of a step: every rank's rewards, compared together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_lightning.algorithm.advantages import AdvantageEstimator
from grpo_lightning.distributed.gather import gather_objects
from grpo_lightning.metrics.step_report import StepReport
from grpo_lightning.rewards import RewardComposition, RewardTable
from grpo_lightning.types import Rollouts


@dataclass(frozen=True, kw_only=True)
class AdvantageSettings:
    """How the completions of a prompt are compared.

    Args:
        scale_rewards: What advantages are divided by: the standard deviation of the group, of the batch, or none.
        multi_objective_aggregation: sum_then_normalize, or normalize_then_sum (GDPO, arXiv:2601.05242).
        partial_rewards: For a completion that only some rewards scored: sum what is there, renormalize the weights, or
            drop the completion.
    """

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
        self.estimate = AdvantageEstimator(settings.scale_rewards, aggregation, partial)
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
        """(N,) advantages; computed over the completions of all ranks, of which this rank's are returned."""
        ranks = gather_objects((rewards.values, rollouts.group, rollouts.num_prompts, rewards.metrics))
        groups, offset = [], 0  # group ids that differ between ranks
        for _, group, num_prompts, metrics in ranks:
            groups.append(group + offset)
            offset += num_prompts
            for name, value in metrics.items():
                report.add_mean(name, torch.tensor([value]))
        values = torch.cat([rank_values for rank_values, *_ in ranks])
        composed, weights = self.composition(values, rewards.names, rewards.weights)
        result = self.estimate(composed, torch.cat(groups), weights)
        report.add(result.metrics())
        report.add_rollouts(rollouts)
        report.add_rewards(rewards, values)
        mine = sum(len(rank_values) for rank_values, *_ in ranks[:rank])
        return result.advantages[mine : mine + rollouts.num_completions].float()
