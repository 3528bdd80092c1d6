"""Weights & Biases."""

from __future__ import annotations

from typing import Any

from grpo_lightning.trackers.base import Table, Tracker

LEVELS = {"bad": "ERROR", "warn": "WARN", "info": "INFO"}


class WandbTracker(Tracker):
    """Config of the run, tables among its media, alerts that W&B mails or posts as the user has set."""

    def metadata(self, settings: dict[str, str], system: dict[str, Any]) -> None:
        """See Tracker."""
        self.logger.experiment.config.update({**settings, "system": system}, allow_val_change=True)

    def table(self, name: str, table: Table, step: int) -> None:
        """See Tracker. A table of its own for each step; ``trainer/global_step`` is the axis of all metrics."""
        self.logger.log_table(name, columns=table.columns, data=table.rows, step=step)

    def alert(self, level: str, title: str, text: str, step: int) -> None:
        """See Tracker."""
        self.logger.experiment.alert(title=title, text=f"Step {step}: {text}", level=LEVELS[level])
