"""Rows that were given from Python: a source like a file or a dataset of the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from grpo_lightning.datamodules.sources.row_stream import RowStream
from grpo_lightning.datamodules.sources.source import DEFAULT_SPLIT
from grpo_lightning.datamodules.sources.specs import is_rows_by_split
from grpo_lightning.datamodules.sources.splits import check_split


@dataclass(frozen=True)
class GivenRows:
    """What ``DataSource`` is to a name; nothing says how to convert them but the settings of all data."""

    given: Any
    """A list of rows, a ``datasets.Dataset``, a stream, or one of them by split."""
    split: str | None = None
    converter: None = None
    converter_args: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "data given from Python"

    def load(self, load_from_cache_file: bool = True) -> Any:
        """The rows, held against what rows are.

        Raises:
            ValueError: If there is no such split, it is a stream, or iterating gives something else than rows: a pandas DataFrame
                gives the names of its columns.
        """
        rows = self._of_split()
        kind = type(rows).__name__
        if not hasattr(rows, "__len__"):
            raise ValueError(
                f"{self} is a stream ({kind}), which only training reads. Set data.streaming for data.dataset; elsewhere use a "
                "datasets.Dataset or a list, such as list(stream.take(10000))."
            )
        first: Any = next(iter(rows), {})
        if not isinstance(first, Mapping):
            raise ValueError(
                f"{self} is a {kind} that gives {first!r:.80}, of type {type(first).__name__}, where a row is a dictionary such "
                "as {'prompt': ..., 'ground_truth': ...}. Give a list of those, or a datasets.Dataset; of a pandas DataFrame "
                "frame.to_dict('records')."
            )
        return rows

    def stream(self) -> RowStream:
        """The rows, read as they are needed."""
        return RowStream(self._of_split(), str(self))

    def _of_split(self) -> Any:
        if self.split is not None and not {"[", "+"}.isdisjoint(self.split):
            raise ValueError(
                f"{self} has whole splits, and {self.split!r} is a part of one, or several. Give the part itself, such as "
                "dataset.select(range(1000)), or several that datasets.concatenate_datasets has put together."
            )
        if not is_rows_by_split(self.given):
            return self.given
        split = self.split or DEFAULT_SPLIT
        check_split(split, list(map(str, self.given)), f"{self} ({type(self.given).__name__})")
        return self.given[split]
