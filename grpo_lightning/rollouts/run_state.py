"""Where a run stands, as rewards are told: transformers' TrainerState, read from a Lightning Trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning.pytorch import Trainer

from grpo_lightning.rewards import RewardState

KEPT = 1000
"""Entries of the history that are kept, and saved in checkpoints."""


def state_of_run(trainer: Trainer, num_updates: int, history: LogHistory) -> RewardState:
    """What the Trainer knows of steps and epochs.

    Args:
        trainer: Of the run.
        num_updates: Optimizer steps of a GRPO step.
        history: Of its metrics.
    """
    max_steps, epochs = length_of_run(
        trainer.num_training_batches * num_updates, trainer.max_steps, trainer.max_epochs or -1
    )
    return RewardState(
        global_step=trainer.global_step,
        max_steps=max_steps,
        epoch=epoch_now(trainer),
        num_train_epochs=epochs,
        log_history=list(history.entries),
        is_local_process_zero=trainer.local_rank == 0,
        is_world_process_zero=trainer.is_global_zero,
    )


def known_after(run: RewardState, global_step: int) -> RewardState:
    """The same with the history that was known after so many optimizer steps, now and a GRPO step later.

    Of a full history the oldest entry is left out: a GRPO step later it is gone.
    """
    known = [entry for entry in run.log_history if entry["step"] <= global_step]
    return replace(run, log_history=known[-KEPT + 1 :])


def length_of_run(steps_per_epoch: float, max_steps: int, max_epochs: int) -> tuple[int, int]:
    """Optimizer steps (-1 for unknown) and epochs (0 for unknown, the last one perhaps in part) of a run.

    Args:
        steps_per_epoch: Optimizer steps of an epoch; infinite for data without an end, 0 before it is known.
        max_steps: Where the run ends; -1 for no such end.
        max_epochs: Where it ends as well; -1 for no such end.

    Example:
        >>> length_of_run(10, -1, 3), length_of_run(10, 25, -1), length_of_run(10, 25, 2), length_of_run(math.inf, 7, -1)
        ((30, 3), (25, 3), (20, 2), (7, 0))
    """
    is_known = 0 < steps_per_epoch < math.inf
    ends = [max_steps] if max_steps >= 0 else []
    if is_known and max_epochs >= 0:
        ends.append(int(steps_per_epoch) * max_epochs)
    if not ends:
        return -1, 0
    return min(ends), math.ceil(min(ends) / steps_per_epoch) if is_known else max(max_epochs, 0)


def epoch_now(trainer: Trainer) -> float:
    """Passes over the data so far, between two steps and within one."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return epoch_at(trainer, trainer.current_epoch, progress.processed)


def epoch_after(trainer: Trainer) -> float:
    """The same once the step in progress is over."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return epoch_at(trainer, trainer.current_epoch, progress.processed + 1)


def epoch_at(trainer: Trainer, epoch: int, batch: int) -> float:
    """Passes over the data before this batch of this epoch, both counted from 0."""
    batches = trainer.num_training_batches
    return epoch + (batch / batches if 0 < batches < math.inf else 0.0)


class LogHistory:
    """The metrics of the latest steps."""

    def __init__(self) -> None:
        self.entries: list[dict[str, float]] = []
        """The last one last."""

    def note(self, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """Takes in the metrics of a step, unless it has moved no weight.

        Args:
            step: Optimizer steps after it.
            epoch: Passes over the data after it.
            metrics: Of that step.
        """
        if step > (self.entries[-1]["step"] if self.entries else 0):
            self.entries = [*self.entries[-KEPT + 1 :], {**metrics, "step": step, "epoch": epoch}]

    def note_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Adds held-out metrics to the entry of the step after which they were measured."""
        if self.entries and self.entries[-1]["step"] == step:
            self.entries = [*self.entries[:-1], {**self.entries[-1], **metrics}]

    def state_dict(self) -> dict[str, Any]:
        """The entries."""
        return {"entries": list(self.entries)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on after them."""
        self.entries = list(state["entries"])
