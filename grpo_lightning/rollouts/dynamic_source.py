"""Dynamic sampling as a source: groups that can teach something, out of another source's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grpo_lightning.datamodules.prompts import PromptDataset
from grpo_lightning.distributed.gather import own_rank
from grpo_lightning.rollouts.base import Moment, Sampled, Source
from grpo_lightning.rollouts.dynamic_sampling import DynamicSampler
from grpo_lightning.rollouts.scored_groups import ScoredGroups
from grpo_lightning.rollouts.source import RolloutSource
from grpo_lightning.types import PromptBatch


class DynamicSource(Source):
    """Drops groups whose completions all earn the same, or replaces them.

    Args:
        inner: What is sampled from: ``source``, or a wrapper of it.
        source: Knows the totals of rewards.
        sampler: Chooses, and remembers.
        prompts: Gives the run's prompts, for further ones in an order of their own, once training starts.
    """

    key = "dynamic_sampling"
    inner: Source

    def __init__(
        self, inner: Source, source: RolloutSource, sampler: DynamicSampler, prompts: Callable[[], PromptDataset]
    ) -> None:
        self.inner, self.source, self.sampler, self.prompts = inner, source, sampler, prompts

    def sample(self, batch: PromptBatch, moment: Moment, stage: str = "train") -> Sampled:
        """The chosen groups, whose rewards are there already."""
        entries: dict[str, Tensor] = {}

        def sample(prompts: PromptBatch, number: int) -> ScoredGroups:
            sampled = self.inner.sample(prompts, moment, f"refill {number}" if number else stage)
            for name, values in sampled.entries.items():  # of every round
                entries[name] = torch.cat([entries[name], values]) if name in entries else values
            return ScoredGroups(sampled.batch, sampled.rollouts, sampled.await_rewards())

        def idle() -> None:
            self.source.sample_nothing(self.source.sampling)

        groups, numbers = self.sampler.collect(batch, sample, self._draw, self.source.composed, moment.step, idle)
        return Sampled(groups.batch, groups.rollouts, lambda: groups.rewards, entries | numbers)

    def _draw(self, count: int) -> PromptBatch:
        """So many further prompts of this rank."""
        prompts = self.prompts()
        return prompts.batch(self.sampler.next_rows(count, len(prompts), *own_rank()))

    def state_dict(self, step: int) -> dict[str, Any]:
        """What the sampler remembers, of all ranks."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores it."""
        weights = {reward.name: reward.weight for reward in self.source.reward_runner.rewards}
        self.sampler.load_state_dict(state, weights, *own_rank())
