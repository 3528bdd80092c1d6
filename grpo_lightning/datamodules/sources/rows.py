"""Rows as Python has them: a table of plain dictionaries, and Arrow's rows without what Arrow added."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import datasets

Row = dict[str, Any]
"""Values by column."""


class Rows(Sequence[dict[str, Any]]):
    """A table in memory whose values are those of the file: nothing is cast to a type that a whole column has.

    Args:
        rows: Dictionaries, which may differ in their keys: a row is None in a column that it lacks.

    Example:
        >>> rows = Rows([{"n": 2**70}, {"n": 0.5, "day": "2024-01-02"}])
        >>> rows.column_names, rows[0]
        (['n', 'day'], {'n': 1180591620717411303424, 'day': None})
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._rows = list(rows)
        self.column_names = column_names(self._rows)
        """In the order of first appearance."""

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self._whole(row) for row in self._rows[index]]
        return self._whole(self._rows[index])

    def _whole(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {name: row.get(name) for name in self.column_names}

    def select(self, indices: Iterable[int]) -> Rows:
        """These rows, in this order, as a ``datasets.Dataset`` selects."""
        chosen = Rows([self._rows[index] for index in indices])
        chosen.column_names = self.column_names
        return chosen

    def to_list(self) -> list[dict[str, Any]]:
        """All rows."""
        return self[:]


def column_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns of a table, or all keys that any of these rows has."""
    return list(getattr(rows, "column_names", None) or dict.fromkeys(name for row in rows for name in row))


def without_padding(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The rows of a table of Arrow as they were before it gave all dictionaries of a column the same keys.

    Arrow fills the keys that a dictionary lacks with None, at every depth, and a chat template or a reward takes them for
    there. They are left out again; the ``content`` of a message stays, which is None in calls of tools. Columns stay too,
    and so do rows that are no table of Arrow.

    Example:
        >>> table = datasets.Dataset.from_list([{"call": {"a": 1}}, {"call": {"b": [{"c": 2}, {"d": 3}]}}])
        >>> list(without_padding(table))
        [{'call': {'a': 1}}, {'call': {'b': [{'c': 2}, {'d': 3}]}}]
    """
    features = getattr(rows, "features", None)
    if not isinstance(features, Mapping):
        yield from rows
        return
    for row in rows:
        yield {name: _unpadded(value, features.get(name)) for name, value in row.items()}


def _unpadded(value: Any, feature: Any) -> Any:
    """The value without what its type made of it; types other than structs and lists of them (JSON, for one) add nothing."""
    if isinstance(feature, Mapping) and isinstance(value, Mapping):
        kept = "content" if "role" in value else None
        return {k: _unpadded(v, feature.get(k)) for k, v in value.items() if v is not None or k == kept}
    if isinstance(feature, datasets.List | datasets.LargeList) and isinstance(value, list):
        return [_unpadded(one, feature.feature) for one in value]
    return value
