"""Shows completions with their rewards, before and after training and while it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def shorten(value: Any, limit: int) -> str:
    """The text of a prompt or completion on one line, its middle left out where it is longer than ``limit``."""
    if isinstance(value, list):
        value = " ".join(str(message.get("content", "")) for message in value)
    text = " ".join(str(value).split())
    if len(text) <= limit:
        return text
    half = (limit - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def sample_table(title: str, rows: Sequence[dict[str, Any]], columns: Sequence[str], limit: int = 90) -> Table:
    """A table of rows; numbers with two decimals, everything else shortened."""
    table = Table(title=title, title_justify="left", show_lines=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = (row.get(column) for column in columns)
        table.add_row(*(Text(f"{c:.2f}" if isinstance(c, float) else shorten(c, limit)) for c in cells))
    return table


def show(*renderables: Any) -> None:
    """Prints to standard output; without a terminal as plain text 140 columns wide."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140)
    for renderable in renderables:
        console.print(renderable)
