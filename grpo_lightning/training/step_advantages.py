"""What is made of every rank's rewards of a step: what is logged of them, and the advantages."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from grpo_lightning.algorithm.advantages import AdvantageEstimator, AdvantageSpec
from grpo_lightning.algorithm.metric_sums import MetricSums
from grpo_lightning.rewards import RewardComposition, RewardTable
from grpo_lightning.training.step_rewards import StepRewards
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

    def together(self, rollouts: Rollouts, rewards: RewardTable) -> StepRewards:
        """The rewards of all ranks, from this rank's: gathered and composed once, for what is logged and for advantages.

        Raises:
            RewardContractError: If a reward gave a list, and the composition asks for one number.
        """
        return StepRewards.together(rollouts, rewards, self.composition)

    def __call__(self, rewards: StepRewards) -> Tensor:
        """This rank's advantages, compared with the completions of all ranks.

        (N,) float32, or (T,) where the rule or a reward tells tokens apart.
        """
        found = self.estimate(rewards.composed, rewards.groups, rewards.composed_weights, rewards.tokens)
        return rewards.of_own_rank(found.advantages).float()

    def reward_metrics(self, rewards: StepRewards) -> MetricSums:
        """What is logged of all ranks' rewards and their totals, whatever advantages are made of them."""
        totals = self.estimate.totals(rewards.composed, rewards.groups, rewards.composed_weights)
        return totals.metrics() + rewards.summed_metrics()
