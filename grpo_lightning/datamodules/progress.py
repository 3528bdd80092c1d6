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


def _current(trainer: L.Trainer | None) -> Any:
    # Any: it is declared without the counter that it has.
    return None if trainer is None else trainer.fit_loop.epoch_loop.batch_progress.current
