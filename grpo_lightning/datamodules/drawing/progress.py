"""How far a Trainer is with the batches that it has fetched."""

from __future__ import annotations

from typing import Any

import lightning as L


def untrained_batches(trainer: L.Trainer | None) -> int:
    """Batches that the fit loop has begun and whose training_step has not returned: 0 or 1."""
    current = _current(trainer)
    return 0 if current is None else current.ready - current.processed


def steps_trained(trainer: L.Trainer | None) -> int | None:
    """Batches of this epoch whose training_step has returned; None outside of a Trainer."""
    current = _current(trainer)
    return None if current is None else current.processed


def count_anew(trainer: L.Trainer | None) -> None:
    """Makes a fit loop that goes on from the end of an epoch count the batches of the next one from 0.

    Lightning does so by itself where it knows how many batches an epoch has; else evaluations would come at other steps.
    """
    if trainer is not None:
        loop = trainer.fit_loop.epoch_loop
        loop.restarting = False  # its reset starts an epoch then
        loop._batches_that_stepped += 1  # as that reset does after a checkpoint inside a batch's end


def _current(trainer: L.Trainer | None) -> Any:
    # Any: it is declared without the counter that it has.
    return None if trainer is None else trainer.fit_loop.epoch_loop.batch_progress.current
