"""Checkpoints are written when they are due, and scored by the weights that they hold; Lightning's ModelCheckpoint does neither here."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from grpo_lightning.distributed.last_checkpoint import NO_STEP, write_last


class DueCheckpoints(Callback):
    """Saves in the place of each ModelCheckpoint of the Trainer, which finds at the end of the batch that it has saved already.

    For modules that step their optimizers themselves it looks at no ``train_time_interval``, and saves only where the
    optimizer steps so far are a multiple of ``every_n_train_steps``: with several of them to a GRPO step, or after one that was
    skipped, they may never be. A held-out ``monitor`` it takes from the evaluation before, whose weights were others.
    Here a checkpoint is due after the step that reaches or passes a multiple. One that a held-out metric decides on is written
    by the next evaluation; last.ckpt does not wait for it.
    """

    def __init__(self) -> None:
        self._global_step = 0
        """Optimizer steps before the step in progress."""
        self._waiting: list[ModelCheckpoint] = []
        """Those whose best the next evaluation decides."""
        self._unwritten: dict[ModelCheckpoint, str] = {}
        """Those that wrote nothing at the last step that was due, and what they had written before."""
        self._waited: list[str] = []
        """The same of the run that this one goes on from, by their names in a checkpoint."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts from here."""
        self._global_step = trainer.global_step
        self._waiting = [callback for callback in _savers(trainer) if callback.state_key in self._waited]
        self._waited, self._unwritten = [], {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves what is due; ModelCheckpoints come after all other callbacks."""
        before, self._global_step = self._global_step, trainer.global_step
        for callback in _savers(trainer):
            if not _is_due(callback, trainer, before) or callback._should_skip_saving_checkpoint(trainer):
                continue
            callback._last_time_checked = time.monotonic()
            metrics = callback._monitor_candidates(trainer)
            self._waiting = [each for each in self._waiting if each is not callback]  # for an earlier step
            if _is_held_out(callback.monitor, trainer, metrics):
                self._waiting.append(callback)
                if callback.save_last:
                    write_last(trainer, callback)
            else:
                if callback.monitor is None or not is_of_earlier(trainer, callback.monitor):
                    callback._save_topk_checkpoint(trainer, metrics)
                if callback.save_last == "link" and callback._last_global_step_saved != trainer.global_step:
                    write_last(trainer, callback)  # it would lead to the last one that was among the best
                else:
                    callback._save_last_checkpoint(trainer, metrics)
            if callback._last_global_step_saved == trainer.global_step:
                self._unwritten.pop(callback, None)
            else:
                self._unwritten[callback] = callback._last_checkpoint_saved
                # Else it would save now, by Lightning's own rules.
                callback._last_global_step_saved = trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves what has waited for the metrics of these weights."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            metrics, saved = callback._monitor_candidates(trainer), callback._last_checkpoint_saved
            if callback.monitor in metrics and not is_of_earlier(trainer, callback.monitor):
                callback._save_topk_checkpoint(trainer, metrics)
            if callback.save_last and callback._last_checkpoint_saved != saved:
                callback._save_last_checkpoint(trainer, metrics)  # which tells of the best of all

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lets ``save_on_exception``, which comes after this, save a step that was due and is written nowhere."""
        for callback, saved in self._unwritten.items():
            if callback._last_checkpoint_saved == saved and callback._last_global_step_saved == trainer.global_step:
                callback._last_global_step_saved = NO_STEP

    def state_dict(self) -> dict[str, Any]:
        """What the next evaluation is to decide on, in a run that goes on too."""
        return {"waiting": [callback.state_key for callback in self._waiting]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it over once the ModelCheckpoints are known."""
        self._waited = state_dict["waiting"]


def is_of_earlier(trainer: Trainer, name: str) -> bool:
    """Whether the step or evaluation that has just ended measured nothing of a metric, which Lightning then has of an earlier one."""
    results: Any = trainer._results or {}
    of_name = [result for result in results.values() if result.meta.name == name]
    return bool(of_name) and all(result.has_reset for result in of_name)


def _savers(trainer: Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def _is_due(callback: ModelCheckpoint, trainer: Trainer, before: int) -> bool:
    """Whether the step that has ended reached a multiple of the interval in steps, or one in time has gone by on the first rank."""
    every, interval = callback._every_n_train_steps, callback._train_time_interval
    if interval is not None:
        gone = time.monotonic() - (callback._last_time_checked or 0.0)
        return bool(trainer.strategy.broadcast(gone >= interval.total_seconds()))
    return every > 0 and before // every < trainer.global_step // every


def _is_held_out(monitor: str | None, trainer: Trainer, metrics: dict[str, Any]) -> bool:
    """Whether an evaluation is to measure it: what no step logs, in a run that evaluates; and what is not there yet."""
    if monitor is None or monitor in ("step", "epoch"):
        return False
    results: Any = trainer.fit_loop.epoch_loop._results
    of_steps = {result.meta.name for result in results.values()}
    plain = monitor.removesuffix("_step").removesuffix("_epoch")  # which Lightning adds to what it logs twice
    return monitor not in metrics or (trainer.enable_validation and not {monitor, plain} & of_steps)
