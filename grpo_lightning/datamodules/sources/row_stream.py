"""Rows that are read as training goes, and the cursor from which reading goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from itertools import islice
from typing import Any

from grpo_lightning.datamodules.sources.rows import without_padding

Cursor = dict[str, Any]
"""``rows`` read of the pass, and the ``source``'s own state where it has one."""

START: Cursor = {"rows": 0, "source": None}


class RowStream:
    """One pass after the other over rows that need not fit into memory.

    A ``datasets.IterableDataset`` goes on from its own state, without reading what lies before. Its shuffle buffer, however,
    would be filled anew; such a dataset, and any other iterable, is read again from the start, which is slower and as exact.

    Args:
        rows: Iterates from the start each time it is asked for an iterator, or a function that gives such an object.
        name: Where they come from; errors quote it.

    Raises:
        ValueError: If the rows can be iterated only once.
    """

    def __init__(
        self, rows: Iterable[Mapping[str, Any]] | Callable[[], Iterable[Mapping[str, Any]]], name: str
    ) -> None:
        self.rows, self.name = rows, name
        if isinstance(rows, Iterator):
            raise ValueError(
                f"{name} is a {type(rows).__name__}, which can be read once, and an exact resume reads again. Give an object "
                "that iterates from the start each time: a datasets.IterableDataset, or a list."
            )
        self._keeps_state = hasattr(rows, "load_state_dict") and not _has_shuffle_buffer(rows)

    def blocks(self, size: int, epoch: int, cursor: Cursor = START) -> Iterator[tuple[list[Mapping[str, Any]], Cursor]]:
        """Blocks of consecutive rows, each with the cursor of what follows it.

        Args:
            size: Rows of a block; the last may have fewer.
            epoch: Of the pass, for a stream whose order depends on it.
            cursor: Where the pass goes on.
        """
        source: Any = self.rows() if callable(self.rows) else self.rows
        if hasattr(source, "set_epoch"):
            source.set_epoch(epoch)
        skipped = cursor["rows"]
        if self._keeps_state:
            source.load_state_dict(deepcopy(cursor["source"]))
            skipped = 0
        rows, done = islice(without_padding(source), skipped, None), cursor["rows"]
        while block := list(islice(rows, size)):
            done += len(block)
            yield block, {"rows": done, "source": deepcopy(source.state_dict()) if self._keeps_state else None}


def _has_shuffle_buffer(rows: Any) -> bool:
    """Whether a ``datasets.IterableDataset`` was shuffled: its state leaves out what the buffer holds."""
    waiting = [getattr(rows, "_ex_iterable", None)]
    while waiting:
        one = waiting.pop()
        if one is None:
            continue
        if "BufferShuffled" in type(one).__name__:
            return True
        waiting += [getattr(one, "ex_iterable", None), *(getattr(one, "ex_iterables", None) or ())]
    return False
