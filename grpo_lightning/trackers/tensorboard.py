"""TensorBoard, whose Text tab reads Markdown."""

from __future__ import annotations

from typing import Any

from grpo_lightning.trackers.base import Table, Tracker


class TensorBoardTracker(Tracker):
    """Everything as text: settings, tables and notices."""

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
