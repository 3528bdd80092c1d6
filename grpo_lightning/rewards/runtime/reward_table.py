"""What scoring a batch returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class RewardTable:
    """The rewards of N completions by R reward functions."""

    values: Tensor
    """(N, R) float64; NaN where a reward does not apply or failed."""
    names: tuple[str, ...]
    """R names, unique."""
    weights: Tensor
    """(R,) float64."""
    extra: dict[str, list[Any]] = field(default_factory=dict)
    """Columns that rewards logged for the table of samples, N entries each, None where a reward gave none."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Seconds that rewards added to the step (``time/rewards/wait``); for each reward seconds per call (mean
    ``time/rewards/<name>``, ``time/rewards/<name>/max``), completions not scored (``rewards/<name>/errors``), calls
    that ran out of time (``rewards/<name>/timeouts``); and what rewards logged."""
    lists: dict[str, list[tuple[float, ...] | None]] = field(default_factory=dict)
    """Rewards that told tokens or turns apart: N entries each, the list (NaN for None) or None where it gave one number.
    Its sum is in ``values``."""

    def take(self, rows: Tensor) -> RewardTable:
        """The table of these completions; metrics stay those of all."""
        chosen = rows.tolist()
        extra = {column: [entries[row] for row in chosen] for column, entries in self.extra.items()}
        lists = {name: [entries[row] for row in chosen] for name, entries in self.lists.items()}
        return RewardTable(self.values[rows], self.names, self.weights, extra, self.metrics, lists)

    @classmethod
    def joined(cls, tables: Sequence[RewardTable]) -> RewardTable:
        """Tables of the same rewards, one after the other; metrics are averaged over those that have them."""
        first = tables[0]
        extra = _joined([table.extra for table in tables], [len(table.values) for table in tables])
        lists = _joined([table.lists for table in tables], [len(table.values) for table in tables])
        names = dict.fromkeys(name for table in tables for name in table.metrics)
        found = {name: [table.metrics[name] for table in tables if name in table.metrics] for name in names}
        metrics = {name: sum(numbers) / len(numbers) for name, numbers in found.items()}
        return cls(torch.cat([table.values for table in tables]), first.names, first.weights, extra, metrics, lists)

    def column(self, name: str) -> Tensor:
        """(N,) of one reward."""
        return self.values[:, self.names.index(name)]


def _joined(parts: Sequence[dict[str, list[Any]]], sizes: Sequence[int]) -> dict[str, list[Any]]:
    """Columns one after the other, None where a part does not have one."""
    columns = dict.fromkeys(column for part in parts for column in part)
    return {
        column: [e for part, size in zip(parts, sizes, strict=True) for e in part.get(column, [None] * size)]
        for column in columns
    }
