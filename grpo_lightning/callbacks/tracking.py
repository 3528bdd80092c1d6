"""Tells the run's trackers what they can show besides curves: completions, notices, settings and system."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from grpo_lightning.callbacks.completions import step_table
from grpo_lightning.callbacks.system import system_info
from grpo_lightning.report.metrics import Series
from grpo_lightning.report.notices import notices
from grpo_lightning.report.small_files import flat_settings
from grpo_lightning.trackers import Table, Tracker, tracker_of

SHOWN = ("step", "uid", "prompt", "completion", "reward", "advantage", "length", "truncated")
"""Columns of a table of completions; each reward follows."""


class Tracking(Callback):
    """Sends completions as tables, the report's notices as alerts, and config and environment as metadata.

    Trackers are those of the Trainer's loggers (W&B, MLflow, Comet, TensorBoard, trackio); a failure of one is said
    once and does not end the run. Only the first rank tells, about its own completions.

    Args:
        settings: Of the run, nested, as in a config.
        every_n_steps: Tables of every so many GRPO steps; notices are looked for then and at the end.
        max_rows: Completions in a table.
    """

    def __init__(self, settings: dict[str, Any] | None = None, every_n_steps: int = 10, max_rows: int = 32) -> None:
        if every_n_steps < 1 or max_rows < 1:
            raise ValueError(
                f"tracking.every_n_steps={every_n_steps} and tracking.max_rows={max_rows} must be at least 1."
            )
        self.settings = flat_settings(settings or {})
        self.every_n_steps = every_n_steps
        self.max_rows = max_rows
        self._trackers: list[Tracker] = []
        self._metrics: dict[str, Series] = {}
        self._said: set[str] = set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the trackers, and tells them settings and system."""
        if not trainer.is_global_zero:
            return
        self._trackers = [tracker for logger in trainer.loggers if (tracker := tracker_of(logger)) is not None]
        system = system_info(trainer.world_size)
        self._tell("metadata", self.settings, system)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remembers the step's numbers; sends a table and new notices at the chosen steps."""
        if not self._trackers:
            return
        module: Any = pl_module
        step = module.steps_done - 1
        for name, value in module.step_metrics.items():
            series = self._metrics.setdefault(name, Series())
            series.steps.append(step)
            series.values.append(float(value))
        record = getattr(module, "last_step", None)
        if step % self.every_n_steps == 0 and record is not None and len(record.batch):
            rows = step_table(module, step, self.max_rows)
            names = [name for name in rows.column_names if name in SHOWN or name.startswith("rewards/")]
            columns = rows.select(names).to_pydict().values()
            self._tell("table", "completions", Table(names, [list(row) for row in zip(*columns, strict=True)]), step)
        if module.steps_done % self.every_n_steps == 0:
            self._alert(step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sends the notices of the whole run that have not been sent."""
        if self._trackers and self._metrics:
            self._alert(max(series.steps[-1] for series in self._metrics.values()))

    def _alert(self, step: int) -> None:
        for notice in notices(self._metrics, self.settings):
            if notice.title not in self._said:
                self._said.add(notice.title)
                self._tell("alert", notice.level, notice.title, notice.text, step)

    def _tell(self, method: str, *arguments: Any) -> None:
        """Calls a method of every tracker; one that fails is not asked again, and curves go on by its logger."""
        for tracker in list(self._trackers):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:
                self._trackers.remove(tracker)
                rank_zero_warn(
                    f"{type(tracker.logger).__name__} could not be sent the run's {method} ({type(error).__name__}: {error}); "
                    "it gets curves only from here on."
                )
