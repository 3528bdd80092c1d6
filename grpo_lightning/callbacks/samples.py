"""Shows completions with their rewards, before and after training and while it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

T = TypeVar("T")


def shorten(value: Any, limit: int) -> str:
    """A prompt, a completion or what a reward logged on one line, its middle left out beyond ``limit`` characters.

    Example:
        >>> shorten([{"role": "user", "content": "1 + 1?"}], 90), shorten([0.5, None], 90)
        ('1 + 1?', '[0.5, None]')
    """
    if isinstance(value, list) and all(isinstance(message, dict) for message in value):
        value = " ".join(str(message.get("content", "")) for message in value)
    text = " ".join(str(value).split())
    if len(text) <= limit:
        return text
    half = (limit - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def evenly_spread(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of the items, in their order, as far apart as they can be; of several the first and the last.

    A dataset is often sorted, by level or by source, so that its first rows are not like the others.

    Example:
        >>> evenly_spread(range(10), 4), evenly_spread("ab", 4), evenly_spread("ab", 1)
        ([0, 3, 6, 9], ['a', 'b'], ['a'])
    """
    last, gaps = len(items) - 1, max(1, count - 1)
    return [items[i * last // gaps] for i in range(count)] if count < len(items) else list(items)


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
    with console.capture() as captured:
        for renderable in renderables:
            console.print(renderable)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(captured.get().encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()
