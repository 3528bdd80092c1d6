"""The trackers of Lightning's loggers, and which of them belongs to a logger."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import Logger

from grpo_lightning.trackers.base import Table, Tracker
from grpo_lightning.trackers.trackio import TrackioTracker

WANDB_LEVELS = {"bad": "ERROR", "warn": "WARN", "info": "INFO"}
LONGEST_PARAM = 6000
"""Characters that MLflow keeps of a parameter."""


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
        self.logger.experiment.alert(title=title, text=f"Step {step}: {text}", level=WANDB_LEVELS[level])


class MLFlowTracker(Tracker):
    """Parameters, tables as the artifacts that MLflow's table view reads, and a tag per notice: it has no alerts."""

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


class CometTracker(Tracker):
    """Parameters, tables as CSV assets that Comet shows as such, and notices under Other: it has no alerts of a run's own."""

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


class TensorBoardTracker(Tracker):
    """Everything as text, whose tab reads Markdown: settings, tables and notices."""

    def metadata(self, settings: dict[str, str], system: dict[str, Any]) -> None:
        """See Tracker."""
        named = settings | {f"system.{name}": str(value) for name, value in system.items()}
        listed = Table(["setting", "value"], [[name, value] for name, value in sorted(named.items())])
        self.logger.experiment.add_text("config", listed.as_markdown(), 0)

    def table(self, name: str, table: Table, step: int) -> None:
        """See Tracker."""
        self.logger.experiment.add_text(name, table.as_markdown(), step)

    def alert(self, level: str, title: str, text: str, step: int) -> None:
        """See Tracker."""
        self.logger.experiment.add_text("notices", f"**{title}** ({level}): {text}", step)


KINDS: dict[str, type[Tracker]] = {
    "WandbLogger": WandbTracker,
    "MLFlowLogger": MLFlowTracker,
    "CometLogger": CometTracker,
    "TensorBoardLogger": TensorBoardTracker,
    "TrackioLogger": TrackioTracker,
}
"""By the name of the logger's class: importing one takes seconds."""


def tracker_of(logger: Logger) -> Tracker | None:
    """The tracker of a logger, or of a subclass of one; None for those that have metrics alone, such as CSVLogger."""
    kinds = (KINDS[kind.__name__] for kind in type(logger).__mro__ if kind.__name__ in KINDS)
    return next((kind(logger) for kind in kinds), None)
