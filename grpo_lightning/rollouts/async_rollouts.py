"""Async rollouts: those of the next step are sampled while the policy is trained on those of this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from grpo_lightning.rewards import RewardState
from grpo_lightning.rollouts.base import Moment, Sampled, Source
from grpo_lightning.rollouts.kept_rewards import has_environments
from grpo_lightning.rollouts.next_batch import NextBatch, Origin, Pending, Ready
from grpo_lightning.rollouts.run_state import known_after
from grpo_lightning.rollouts.source import RolloutSource
from grpo_lightning.types import PromptBatch


@dataclass(frozen=True, kw_only=True)
class AsyncRolloutSettings:
    """Whether sampling runs ahead of training.

    Args:
        async_rollouts: GRPO steps by which sampling runs ahead of training: 0 for none, or 1: while the policy is
            trained on a batch, the server (VLLMServer) samples the next, from weights that are one step older. The
            importance correction weighs its tokens.
    """

    async_rollouts: int = 0


class AsyncRollouts(Source):
    """Overlaps sampling with training, one step off-policy.

    Step k waits for its batch, sends the weights of the moment to the idle server, launches batch k+1 and then trains
    on batch k. So batch k+1 is sampled as a whole from the policy after step k-1, whatever takes how long.

    Args:
        source: Samples; its generator has ``supports_async_rollouts``.
        next_prompts: The epoch and the prompts of the next step; None where training is known to end with this one.
        num_updates: Optimizer steps of a GRPO step.
    """

    key = "async_rollouts"
    inner: RolloutSource

    def __init__(
        self, source: RolloutSource, next_prompts: Callable[[], tuple[float, PromptBatch] | None], num_updates: int
    ) -> None:
        self.inner, self.next_prompts, self.num_updates = source, next_prompts, num_updates
        self.next_batch = NextBatch(source.sampling)
        source.before_transfer.append(self.next_batch.wait)  # the batch is sampled as a whole from the older weights

    def sample(self, batch: PromptBatch, moment: Moment, stage: str = "train") -> Sampled:
        """Waits for the step's batch, and has the next one sampled; refills are sampled at once."""
        if stage != "train":
            sampled = self.inner.sample(batch, moment, stage)
            return replace(sampled, entries=self._staleness(None, moment, sampled.rollouts.num_completions))
        ready = self.next_batch.take(moment.step, batch)
        self.inner.prepare()
        sampled = self.inner.sample(batch, moment) if ready is None else self._scored(batch, ready, moment)
        self._launch(moment)
        return replace(sampled, entries=self._staleness(ready, moment, sampled.rollouts.num_completions))

    def _staleness(self, ready: Ready | None, moment: Moment, count: int) -> dict[str, Tensor]:
        """By how much the weights that sampled each of the completions are older than those that they improve."""
        steps = 0 if ready is None else moment.step - ready.origin.weights_step
        updates = 0 if ready is None else moment.updates - ready.origin.weights_update
        ages = {"sampling/staleness_steps": steps, "sampling/staleness_updates": updates}
        return {name: torch.full((count,), float(age)) for name, age in ages.items()}

    def _scored(self, batch: PromptBatch, ready: Ready, moment: Moment) -> Sampled:
        if not has_environments(ready.rollouts):  # whose rewards are saved with them, so after their calls
            self.inner.reward_runner.kept_state.begin_step(moment.step)
        if ready.await_rewards is not None:
            return Sampled(batch, ready.rollouts, ready.await_rewards)
        state = self._state_of(ready.origin, moment)
        rewards_of = self.inner.begin_scoring(batch, state)[1]
        return Sampled(batch, ready.rollouts, rewards_of(ready.rollouts))

    def _launch(self, moment: Moment) -> None:
        found = self.next_prompts()
        if found is None:
            return
        epoch, batch = found
        origin = Origin(moment.step + 1, moment.step, moment.updates, moment.updates + self.num_updates)
        state = self._state_of(origin, replace(moment, epoch=epoch))
        seeds = self.inner.prompt_seeds(batch, "train", origin.step)

        def sample_only() -> Pending:  # scored in its step: checkpoints before it hold none of the rewards' calls
            rollouts = self.inner.generate(batch, self.inner.sampling, seeds, lambda *finished: None)
            return rollouts, cache(lambda: self.inner.begin_scoring(batch, state)[1](rollouts)())

        if self.inner.reward_runner.kept_state.is_kept:
            self.next_batch.launch(origin, batch, sample_only)
            return
        completed, rewards_of = self.inner.begin_scoring(batch, state)

        def sample() -> Pending:
            rollouts = self.inner.generate(batch, self.inner.sampling, seeds, completed)
            return rollouts, cache(rewards_of(rollouts))  # a checkpoint and the step may both wait

        self.next_batch.launch(origin, batch, sample)

    def _state_of(self, origin: Origin, moment: Moment) -> RewardState:
        """What the batch's rewards are told: the same as it is launched and, out of a checkpoint, a step later."""
        run = known_after(moment.run, origin.weights_update)
        return self.inner.reward_state(replace(moment, run=run), origin.global_step)

    def state_dict(self, step: int) -> dict[str, Any]:
        """The next batch, having waited for it."""
        return self.next_batch.state_dict(step)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores it."""
        self.next_batch.load_state_dict(state)

    def close(self, step: int) -> None:
        """Ends the sampling of the next batch; before the generator does."""
        self.next_batch.end(step, self.inner.generator.interrupt)
