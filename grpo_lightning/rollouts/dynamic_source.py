"""Dynamic sampling as a source: groups that can teach something, out of another source's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.distributed.gather import gather_objects, own_rank
from grpo_lightning.rollouts.base import Moment, Sampled, Source
from grpo_lightning.rollouts.dynamic_sampling import DynamicSampler
from grpo_lightning.rollouts.scored_groups import ScoredGroups
from grpo_lightning.rollouts.source import RolloutSource
from grpo_lightning.types import PromptBatch


class DynamicSource(Source):
    """Drops groups whose completions all earn the same, or replaces them.

    Args:
        inner: What is sampled from: ``source``, or a wrapper of it.
        source: Knows the rewards, and what a rank does while others sample.
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
        wanted, sampled = len(batch), [self.inner.sample(batch, moment, stage)]
        rounds = [self.sampler.round(_scored(sampled[0]))]
        for number in range(1, self.sampler.further_rounds + 1):
            need = wanted - sum(len(each.kept) for each in rounds)
            if not max(gather_objects(need)):
                break
            if need:
                sampled.append(self.inner.sample(self._draw(need), moment, f"refill {number}"))
                rounds.append(self.sampler.round(_scored(sampled[-1])))
            else:  # other ranks sample
                self.source.sample_nothing(self.source.sampling)
        groups, numbers = self.sampler.choose(rounds, wanted, moment.step)
        names = dict.fromkeys(name for each in sampled for name in each.entries)
        entries = {name: torch.cat([each.entries[name] for each in sampled if name in each.entries]) for name in names}
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


def _scored(sampled: Sampled) -> ScoredGroups:
    """With its rewards, for which it waits."""
    return ScoredGroups(sampled.batch, sampled.rollouts, sampled.await_rewards())
