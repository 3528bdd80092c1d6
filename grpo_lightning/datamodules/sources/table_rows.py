"""Rows of CSV and TSV: columns become numbers only where nothing is lost by it."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from grpo_lightning.datamodules.sources.rows import Row


def table_rows(file: TextIO, is_tsv: bool) -> Iterator[Row]:
    r"""The rows of a table of text: a head of names, then a line for each row.

    Args:
        file: Opened, at its start, with line ends as they are.
        is_tsv: Whether tabs stand between cells.

    Raises:
        ValueError, csv.Error: If its lines do not fit its head.

    Example:
        >>> import io
        >>> list(table_rows(io.StringIO("n,id\n1,007\n2,\n"), is_tsv=False))
        [{'n': 1, 'id': '007'}, {'n': 2, 'id': None}]
    """
    csv.field_size_limit(sys.maxsize)  # the module's limit of 128 KiB a cell is of the whole process
    head = file.readline()
    file.seek(0)
    lines = csv.reader(file, delimiter="\t" if is_tsv else _separator(head), strict=True)
    names = next(lines, [])
    if len(set(names)) < len(names):
        raise ValueError(f"its head names a column twice: {', '.join(names)}.")
    cells = [line for line in lines if line]
    for number, line in enumerate(cells):
        if len(line) != len(names):
            raise ValueError(f"row {number} has {len(line)} cells and the head {len(names)}: {line!r:.120}")
    columns = [_typed([line[place] for line in cells]) for place in range(len(names))]
    yield from (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))


def _separator(head: str) -> str:
    """What stands between cells: a comma, unless the head has none: spreadsheets write semicolons too."""
    return next((mark for mark in ",;\t" if mark in head), ",")


def _typed(cells: list[str]) -> list[Any]:
    """Numbers or truth values where every cell is written as Python writes them: ``007`` and ``0.50`` stay text."""
    for read in (_number, _truth):
        values = [None if cell == "" else read(cell) for cell in cells]
        if all(value is not None or cell == "" for value, cell in zip(values, cells, strict=True)):
            return values
    return [cell or None for cell in cells]


def _number(cell: str) -> int | float | None:
    for kind in (int, float):
        try:
            value = kind(cell)
        except ValueError:
            continue
        if str(value) == cell and (kind is int or math.isfinite(value)):
            return value
    return None


def _truth(cell: str) -> bool | None:
    return {"True": True, "False": False}.get(cell)
