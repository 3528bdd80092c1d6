"""LookaheadModule: the rollouts of the next step are sampled while the policy is trained on those of this one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from grpo_lightning.datamodules.loader import TrainingLoader
from grpo_lightning.modules.run_state import epoch_at
from grpo_lightning.modules.updates import UpdateModule
from grpo_lightning.rewards import RewardTable
from grpo_lightning.rollouts.batch_in_flight import AsyncRollouts, Landed, Origin, Sampled
from grpo_lightning.types import PromptBatch, Rollouts


class LookaheadModule(UpdateModule):
    """Overlaps sampling with training, one step off-policy, where a setting asks for it.

    Step k waits for its batch, sends the weights of the moment to the idle server, launches batch k+1 and then trains
    on batch k. So batch k+1 is sampled as a whole from the policy after step k-1, whatever takes how long.

    Args:
        async_rollouts: GRPO steps by which sampling runs ahead of training: 0 for none, or 1: while the policy is
            trained on a batch, the server (VLLMServer) samples the next, from weights that are one step older. The
            importance correction weighs its tokens.
        **updates: Arguments of UpdateModule.
    """

    def __init__(self, async_rollouts: int = 0, **updates: Any) -> None:
        super().__init__(**updates)
        self.async_rollouts = async_rollouts
        self.lookahead = AsyncRollouts(self.sampling) if async_rollouts else None
        if async_rollouts:
            self._check_async()

    def _check_async(self) -> None:
        setting, generator = f"model.async_rollouts={self.async_rollouts}", type(self.generator).__name__
        if self.async_rollouts not in (0, 1):
            raise ValueError(
                f"{setting} is not possible. Use 0 (sample, then train) or 1: the server samples a step ahead. Further "
                "ahead, completions would be sampled by weights that change under them, and no run could be repeated."
            )
        if not self.generator.can_sample_ahead:
            raise ValueError(
                f"{setting} samples while the policy is trained, and model.generator={generator} needs the policy or its "
                "device for it. Use model.generator=VLLMServer, or async_rollouts=0."
            )
        if not self.objective.importance_sampling_correction:
            raise ValueError(
                f"{setting} trains on tokens of the policy one step before, which "
                "model.importance_sampling_correction=false would treat as its own. Turn the correction on."
            )

    def setup(self, stage: str) -> None:
        """Checks that the prompts of the next step can be known."""
        super().setup(stage)
        has_prompts = getattr(self.datamodule, "train_prompts", None) is not None
        if self.lookahead is not None and stage == "fit" and not has_prompts:
            raise ValueError(
                "model.async_rollouts asks GRPODataModule for the next prompts, and the Trainer has another source of data. "
                "Use GRPODataModule, or async_rollouts=0."
            )

    def prepare_generator(self) -> None:
        """As RolloutModule; other weights are sent only once the batch in flight is there."""
        if self.lookahead is not None and not self._generator_is_current:
            self.lookahead.wait()
        super().prepare_generator()

    def sample_and_score(self, batch: PromptBatch, stage: str = "train") -> tuple[Rollouts, Callable[[], RewardTable]]:
        """As RolloutModule; with async_rollouts the batch in flight lands, and the next one takes off."""
        if self.lookahead is None or stage != "train":
            return super().sample_and_score(batch, stage)
        landed = self.lookahead.take(self.steps_done, batch)
        self.prepare_generator()
        sampled = super().sample_and_score(batch) if landed is None else self._scored(batch, landed)
        self._launch_next_batch()
        self.generator_metrics = self.generator_metrics | self._staleness(landed)
        return sampled

    def _scored(self, batch: PromptBatch, landed: Landed) -> Sampled:
        if landed.await_rewards is not None:
            return landed.rollouts, landed.await_rewards
        state = replace(self.reward_state(), global_step=landed.origin.global_step)
        return landed.rollouts, self.begin_scoring(batch, state)[1](landed.rollouts)

    def _staleness(self, landed: Landed | None) -> dict[str, float]:
        """By how much the weights that sampled this step's batch are older than those that it improves."""
        steps = 0 if landed is None else self.steps_done - landed.origin.weights_step
        updates = 0 if landed is None else self.trainer.global_step - landed.origin.weights_update
        return {"sampling/staleness_steps": float(steps), "sampling/staleness_updates": float(updates)}

    def _launch_next_batch(self) -> None:
        place = self._next_place()
        if place is None:
            return
        assert self.lookahead is not None
        batch = self._training_loader().batch_at(*place)
        updates = self.trainer.global_step
        origin = Origin(self.steps_done + 1, self.steps_done, updates, updates + self.num_updates)
        state = replace(self.reward_state(), global_step=origin.global_step, epoch=epoch_at(self.trainer, *place))
        completed, rewards_of = self.begin_scoring(batch, state)
        seeds = self.prompt_seeds(batch, "train", origin.step)

        def sample() -> Sampled:
            rollouts = self.generator.generate(batch.prompt_ids, self.sampling, seeds, completed)
            return rollouts, rewards_of(rollouts)

        self.lookahead.launch(origin, batch, sample)

    def _next_place(self) -> tuple[int, int] | None:
        """(epoch, batch) of the next step; None where training is known to end with this one."""
        trainer = self.trainer
        if 0 <= trainer.max_steps <= trainer.global_step + self.num_updates:
            return None
        epoch, batch = self._training_loader().following_place(int(trainer.num_training_batches))
        is_over = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epoch
        return None if is_over else (epoch, batch)

    def _training_loader(self) -> TrainingLoader:
        loader = self.trainer.train_dataloader
        if not isinstance(loader, TrainingLoader):
            raise TypeError(
                f"model.async_rollouts needs the loader of GRPODataModule for the next prompts; train_dataloader() gave a "
                f"{type(loader).__name__}. Leave train_dataloader as it is, or use async_rollouts=0."
            )
        return loader

    def teardown(self, stage: str) -> None:
        """Ends the batch in flight before the generator."""
        if self.lookahead is not None:
            self.lookahead.end(self.steps_done, self.generator.interrupt)
        super().teardown(stage)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the batch in flight, having waited for it."""
        super().on_save_checkpoint(checkpoint)
        if self.lookahead is not None:
            checkpoint["async_rollouts"] = self.lookahead.state_dict(self.steps_done)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores it."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get("async_rollouts")
        if self.lookahead is not None:
            self.lookahead.load_state_dict(saved)
        elif saved is not None and saved["parts"]:
            rank_zero_warn(
                "The checkpoint holds a batch sampled ahead, which model.async_rollouts=0 leaves out: the next step samples "
                "its own."
            )
