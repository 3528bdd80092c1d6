"""MLflow, which has neither alerts nor tables that grow with a run: tags and JSON files take their place."""

from __future__ import annotations

from typing import Any

from grpo_lightning.trackers.base import Table, Tracker

LONGEST_PARAM = 6000
"""Characters that MLflow keeps of a parameter."""


class MLFlowTracker(Tracker):
    """Parameters, tables as the artifacts that MLflow's table view reads, and a tag per notice."""

    def metadata(self, settings: dict[str, str], system: dict[str, Any]) -> None:
        """See Tracker."""
        self.logger.log_hyperparams({name: value[:LONGEST_PARAM] for name, value in settings.items()})
        for name, value in system.items():
            self.logger.experiment.set_tag(self.logger.run_id, f"system.{name}", str(value))

    def table(self, name: str, table: Table, step: int) -> None:
        """See Tracker. MLflow appends the rows of further steps to the file."""
        self.logger.experiment.log_table(self.logger.run_id, data=table.as_columns(), artifact_file=f"{name}.json")

    def alert(self, level: str, title: str, text: str, step: int) -> None:
        """See Tracker."""
        plain = "".join(letter if letter.isalnum() or letter in " -_" else " " for letter in title)
        self.logger.experiment.set_tag(self.logger.run_id, f"notice.{plain}", f"{level}, step {step}: {text}")
