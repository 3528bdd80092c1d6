"""One form for all trackers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers under named columns."""

    columns: list[str]
    rows: list[list[Any]]

    def as_columns(self) -> dict[str, list[Any]]:
        """The same by column.

        Example:
            >>> Table(["step", "reward"], [[0, 0.5], [0, 1.0]]).as_columns()
            {'step': [0, 0], 'reward': [0.5, 1.0]}
        """
        return {name: [row[i] for row in self.rows] for i, name in enumerate(self.columns)}

    def as_markdown(self) -> str:
        r"""The same as a Markdown table, one line a row; what a model wrote cannot open a cell or a tag.

        Example:
            >>> print(Table(["completion"], [["a|b\n<i>"]]).as_markdown())
            | completion |
            | --- |
            | a&#124;b &lt;i&gt; |
        """
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")


class Tracker(ABC):
    """What every tracker can be told besides metrics, which Lightning's logger sends.

    Args:
        logger: Lightning's logger of this tracker.
    """

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    @abstractmethod
    def metadata(self, settings: dict[str, str], system: dict[str, Any]) -> None:
        """Notes the settings of the run, flat, and what it runs on."""

    @abstractmethod
    def table(self, name: str, table: Table, step: int) -> None:
        """Shows a table of a step."""

    @abstractmethod
    def alert(self, level: str, title: str, text: str, step: int) -> None:
        """Says that something stands out; ``level`` is bad, warn or info."""
