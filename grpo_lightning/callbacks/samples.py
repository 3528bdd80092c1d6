"""Shows completions with their rewards, before and after training and while it runs."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from grpo_lightning.messages import said

T = TypeVar("T")

CELL_CHARS = 90
"""Of a prompt or completion in a table."""


def shorten(value: Any, limit: int) -> str:
    """A prompt, a completion or what a reward logged on one line, its middle left out beyond ``limit`` characters.

    Example:
        >>> shorten([{"role": "user", "content": "1 + 1?"}], 90), shorten([0.5, None], 90)
        ('1 + 1?', '[0.5, None]')
    """
    if isinstance(value, list) and all(isinstance(message, dict) for message in value):
        value = " ".join(map(said, value))
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


def sample_table(title: str, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> Table:
    """A table of rows; numbers with two decimals, everything else shortened."""
    table = Table(title=title, title_justify="left", show_lines=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = (row.get(column) for column in columns)
        table.add_row(*(Text(f"{c:.2f}" if isinstance(c, float) else shorten(c, CELL_CHARS)) for c in cells))
    return table


def fitting(
    columns: Sequence[str], optional: Sequence[str], rows: Sequence[dict[str, Any]], width: int, least: int = 30
) -> list[str]:
    """The columns, and those of the optional ones that leave ``least`` characters of ``width`` to the completion.

    Example:
        >>> rows = [{"prompt": "1+1=", "completion": "a long way to 2", "tokens": "9", "extracted_answer": "2"}]
        >>> fitting(["prompt", "completion", "tokens"], ["extracted_answer"], rows, 80)
        ['prompt', 'completion', 'tokens', 'extracted_answer']
        >>> fitting(["prompt", "completion", "tokens"], ["extracted_answer"], rows, 50)
        ['prompt', 'completion', 'tokens']
    """
    kept = [*columns, *optional]
    while len(kept) > len(columns):
        shown = sample_table("", rows, kept).columns
        others = sum(max(len(str(cell)) for cell in [column.header, *column.cells]) for column in shown)
        completion = max(len(str(cell)) for cell in [*shown[kept.index("completion")].cells, "completion"])
        if width - (others - completion) - 3 * len(kept) - 1 >= min(least, completion):
            break
        kept.pop()
    return kept


def screen() -> Console:
    """Standard output; without a terminal 140 columns wide."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140)


def between_words(text: str, width: int) -> str:
    """The text, its lines broken between words where they are longer than ``width``; a longer word, as a path is, stays whole.

    Example:
        >>> print(between_words("written to /a/long/path.json at last", 12))
        written to
        /a/long/path.json
        at last
    """
    wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(wrapper.fill(line) for line in text.splitlines())


def show(*renderables: Any) -> None:
    """Prints to standard output, above the bar; without a terminal as plain text 140 columns wide.

    While a bar is drawn, standard output is Rich's own, which puts lines above it. A console writes past that to the terminal
    itself, where the bar's next drawing would take its lines for a part of the bar and erase them; so it is only asked for
    the text.
    """
    console = screen()
    with console.capture() as captured:
        for renderable in renderables:
            if isinstance(renderable, str) and sys.stdout.isatty():
                renderable = between_words(renderable, console.width)
            console.print(renderable, soft_wrap=isinstance(renderable, str), highlight=False, markup=False)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(captured.get().encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()
