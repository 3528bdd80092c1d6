"""Comet, which has no alerts of a run's own: notices are among what else is said of it."""

from __future__ import annotations

from typing import Any

from grpo_lightning.trackers.base import Table, Tracker


class CometTracker(Tracker):
    """Parameters, tables as CSV assets that Comet shows as such, and notices under Other."""

    def metadata(self, settings: dict[str, str], system: dict[str, Any]) -> None:
        """See Tracker."""
        self.logger.experiment.log_parameters(settings)
        self.logger.experiment.log_others({f"system.{name}": str(value) for name, value in system.items()})

    def table(self, name: str, table: Table, step: int) -> None:
        """See Tracker."""
        file = f"{name}-{step:06d}.csv"
        self.logger.experiment.log_table(file, tabular_data=table.rows, headers=table.columns)

    def alert(self, level: str, title: str, text: str, step: int) -> None:
        """See Tracker."""
        self.logger.experiment.log_other(f"notice: {title}", f"{level}, step {step}: {text}")
