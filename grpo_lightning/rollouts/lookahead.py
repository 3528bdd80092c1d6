"""The lookahead: the rollouts of the next step are sampled while the policy is trained on those of this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from grpo_lightning.datamodules.loader import TrainingLoader
from grpo_lightning.rollouts.batch_in_flight import BatchInFlight, Landed, Origin, Pending
from grpo_lightning.rollouts.run_state import epoch_at
from grpo_lightning.rollouts.source import Moment, RolloutSource, Sampled, Source
from grpo_lightning.types import PromptBatch


@dataclass(frozen=True, kw_only=True)
class LookaheadSettings:
    """Whether sampling runs ahead of training.

    Args:
        async_rollouts: GRPO steps by which sampling runs ahead of training: 0 for none, or 1: while the policy is
            trained on a batch, the server (VLLMServer) samples the next, from weights that are one step older. The
            importance correction weighs its tokens.
    """

    async_rollouts: int = 0


class Lookahead(Source):
    """Overlaps sampling with training, one step off-policy.

    Step k waits for its batch, sends the weights of the moment to the idle server, launches batch k+1 and then trains
    on batch k. So batch k+1 is sampled as a whole from the policy after step k-1, whatever takes how long.

    Args:
        source: Samples; its generator has ``can_sample_ahead``.
        next_batch: The epoch and the prompts of the next step; None where training is known to end with this one.
        num_updates: Optimizer steps of a GRPO step.
    """

    key = "lookahead"
    inner: RolloutSource

    def __init__(
        self, source: RolloutSource, next_batch: Callable[[], tuple[float, PromptBatch] | None], num_updates: int
    ) -> None:
        self.inner, self.next_batch, self.num_updates = source, next_batch, num_updates
        self.in_flight = BatchInFlight(source.sampling)
        source.before_transfer.append(self.in_flight.wait)  # the batch is sampled as a whole from the older weights

    def sample(self, batch: PromptBatch, moment: Moment, stage: str = "train") -> Sampled:
        """The batch in flight lands, and the next one takes off; refills are sampled at once."""
        if stage != "train":
            sampled = self.inner.sample(batch, moment, stage)
            return replace(sampled, entries=self._staleness(None, moment, sampled.rollouts.num_completions))
        landed = self.in_flight.take(moment.step, batch)
        self.inner.prepare()
        sampled = self.inner.sample(batch, moment) if landed is None else self._scored(batch, landed, moment)
        self._launch(moment)
        return replace(sampled, entries=self._staleness(landed, moment, sampled.rollouts.num_completions))

    def _staleness(self, landed: Landed | None, moment: Moment, count: int) -> dict[str, Tensor]:
        """By how much the weights that sampled each of the completions are older than those that they improve."""
        steps = 0 if landed is None else moment.step - landed.origin.weights_step
        updates = 0 if landed is None else moment.updates - landed.origin.weights_update
        ages = {"sampling/staleness_steps": steps, "sampling/staleness_updates": updates}
        return {name: torch.full((count,), float(age)) for name, age in ages.items()}

    def _scored(self, batch: PromptBatch, landed: Landed, moment: Moment) -> Sampled:
        if landed.await_rewards is not None:
            return Sampled(batch, landed.rollouts, landed.await_rewards)
        state = self.inner.reward_state(moment, landed.origin.global_step)
        rewards_of = self.inner.begin_scoring(batch, state)[1]
        return Sampled(batch, landed.rollouts, rewards_of(landed.rollouts))

    def _launch(self, moment: Moment) -> None:
        found = self.next_batch()
        if found is None:
            return
        epoch, batch = found
        origin = Origin(moment.step + 1, moment.step, moment.updates, moment.updates + self.num_updates)
        state = self.inner.reward_state(replace(moment, epoch=epoch), origin.global_step)
        completed, rewards_of = self.inner.begin_scoring(batch, state)
        seeds = self.inner.prompt_seeds(batch, "train", origin.step)

        def sample() -> Pending:
            rollouts = self.inner.generate(batch, self.inner.sampling, seeds, completed)
            return rollouts, rewards_of(rollouts)

        self.in_flight.launch(origin, batch, sample)

    def state_dict(self, step: int) -> dict[str, Any]:
        """The batch in flight, having waited for it."""
        return self.in_flight.state_dict(step)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores it."""
        self.in_flight.load_state_dict(state)

    def close(self, step: int) -> None:
        """Ends the batch in flight; before the generator does."""
        self.in_flight.end(step, self.inner.generator.interrupt)


def following_batch(trainer: Trainer, num_updates: int) -> tuple[float, PromptBatch] | None:
    """The epoch, with its fraction, and the prompts of the step after the one in progress; None where training is known to end with this one.

    Args:
        trainer: In a fit on the loader of GRPODataModule.
        num_updates: Optimizer steps of a GRPO step.

    Raises:
        TypeError: With another loader, which cannot tell.
    """
    if 0 <= trainer.max_steps <= trainer.global_step + num_updates:
        return None
    loader = trainer.train_dataloader
    if not isinstance(loader, TrainingLoader):
        raise TypeError(
            f"model.async_rollouts needs the loader of GRPODataModule for the next prompts; train_dataloader() gave a "
            f"{type(loader).__name__}. Leave train_dataloader as it is, or use async_rollouts=0."
        )
    epoch, batch = loader.following_place(int(trainer.num_training_batches))
    is_over = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epoch
    return None if is_over else (epoch_at(trainer, epoch, batch), loader.batch_at(epoch, batch))
