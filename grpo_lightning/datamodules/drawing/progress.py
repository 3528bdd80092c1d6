"""How far a Trainer is: with the batches that it has fetched, and what it asks for next."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from grpo_lightning.datamodules.drawing.loader import TrainingLoader
from grpo_lightning.types import PromptBatch


def untrained_batches(trainer: Trainer | None) -> int:
    """Batches that the fit loop has begun and whose training_step has not returned: 0 or 1."""
    current = _current(trainer)
    return 0 if current is None else current.ready - current.processed


def steps_trained(trainer: Trainer | None) -> int | None:
    """Batches of this epoch whose training_step has returned; None outside of a Trainer."""
    current = _current(trainer)
    return None if current is None else current.processed


def count_anew(trainer: Trainer | None) -> None:
    """Makes a fit loop that goes on from the end of an epoch count the batches of the next one from 0.

    Lightning does so by itself where it knows how many batches an epoch has; else evaluations would come at other steps.
    """
    if trainer is not None:
        loop = trainer.fit_loop.epoch_loop
        loop.restarting = False  # its reset starts an epoch then
        loop._batches_that_stepped += 1  # as that reset does after a checkpoint inside a batch's end


def is_last_step(trainer: Trainer, num_updates: int = 1) -> bool:
    """Whether ``trainer.max_steps`` ends training with the step in progress, of so many optimizer steps."""
    return 0 <= trainer.max_steps <= trainer.global_step + num_updates


def place_after(trainer: Trainer, loader: TrainingLoader, num_updates: int = 1) -> tuple[int, int] | None:
    """(epoch, batch) of the step after the one in progress; None where training is known to end with this one.

    Args:
        trainer: In a fit on ``loader``.
        loader: Its training data.
        num_updates: Optimizer steps of the step in progress.
    """
    if is_last_step(trainer, num_updates):
        return None
    epoch, batch = loader.following_place(int(trainer.num_training_batches))
    is_over = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epoch
    return None if is_over else (epoch, batch)


def next_batch(trainer: Trainer) -> PromptBatch | None:
    """This rank's prompts of the step after the one in progress; None where there is none, or a stream cannot tell."""
    loader = trainer.train_dataloader
    if not isinstance(loader, TrainingLoader):
        return None
    place = place_after(trainer, loader)
    return None if place is None else loader.batch_ahead(*place)


def _current(trainer: Trainer | None) -> Any:
    # Any: it is declared without the counter that it has.
    return None if trainer is None else trainer.fit_loop.epoch_loop.batch_progress.current
