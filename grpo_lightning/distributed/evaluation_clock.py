"""Evaluations by the clock (``trainer.val_check_interval: 00:00:30:00``) come after the same step on every rank."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class EvaluationClock(Callback):
    """The first rank's clock decides. Lightning asks that of each rank, and ranks that differ wait for each other for ever."""

    def __init__(self) -> None:
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts from where Lightning does, which asks for the time before the first step too: whether an evaluation is to be ended.

        It is where the checkpoint was written in the middle of one.
        """
        self._since = getattr(trainer, "_last_val_time", 0.0)
        if getattr(trainer, "_val_check_time_interval", None) is not None:
            is_inside = trainer.fit_loop.epoch_loop.val_loop.restarted_mid_evaluation
            trainer._last_val_time = -math.inf if is_inside else math.inf  # type: ignore[attr-defined]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tells Lightning, which compares the clock with the end of the last evaluation after this, that it is time or is not."""
        interval = getattr(trainer, "_val_check_time_interval", None)
        if interval is not None:
            is_time = trainer.strategy.broadcast(time.monotonic() - self._since >= interval)
            trainer._last_val_time = -math.inf if is_time else math.inf  # type: ignore[attr-defined]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts anew."""
        self._since = time.monotonic()
