"""A source that notes how each prompt did, for the data: of all groups sampled, whether they are trained on or not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from grpo_lightning.algorithm.advantages import combine_rewards
from grpo_lightning.datamodules.drawing.outcomes import GroupOutcomes
from grpo_lightning.rewards import RewardTable
from grpo_lightning.rollouts.base import Moment, Sampled, Source
from grpo_lightning.rollouts.source import RolloutSource
from grpo_lightning.types import PromptBatch


class NotedSource(Source):
    """Passes rollouts on; as their rewards are read, keeps the outcome of each group until it is told.

    Args:
        inner: What is sampled from.
        source: Knows the totals of rewards.
        success: Name of the reward that says whether a completion is correct; where training has no such reward, the
            total does.
    """

    key = "noted"
    inner: Source

    def __init__(self, inner: Source, source: RolloutSource, success: str) -> None:
        self.inner, self.source, self.success = inner, source, success
        self._outcomes: list[GroupOutcomes] = []

    def sample(self, batch: PromptBatch, moment: Moment, stage: str = "train") -> Sampled:
        """See ``Source.sample``."""
        sampled = self.inner.sample(batch, moment, stage)

        def await_rewards() -> RewardTable:
            rewards = sampled.await_rewards()
            totals = combine_rewards(*self.source.composed(rewards))
            correct = self._correct(rewards, totals)
            self._outcomes.append(GroupOutcomes.of(sampled.batch.uids, sampled.rollouts.group, totals, correct))
            return rewards

        return replace(sampled, await_rewards=await_rewards)

    def _correct(self, rewards: RewardTable, totals: Tensor) -> Tensor:
        is_trained_on = self.success in rewards.names
        return rewards.values[:, rewards.names.index(self.success)] if is_trained_on else totals

    def tell(self, data: Any) -> dict[str, Tensor]:
        """Hands the outcomes since the last call to data that keeps them, and gives its entries of means for the log.

        Args:
            data: The Trainer's datamodule; None where it has plain dataloaders.
        """
        outcomes, self._outcomes = GroupOutcomes.joined(self._outcomes), []
        entries: dict[str, Tensor] = data.record(outcomes) if hasattr(data, "record") else {}
        return entries
