"""What scoring a batch returns, and the checks that a reward's answer passes on its way in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grpo_lightning.rewards.base import RewardContractError


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
    ``time/rewards/<name>``, ``time/rewards/<name>/max``), completions not scored (``rewards/<name>/errors``), calls that
    ran out of time (``rewards/<name>/timeouts``); and what rewards logged."""

    def take(self, rows: Tensor) -> RewardTable:
        """The table of these completions; metrics stay those of all."""
        chosen = rows.tolist()
        extra = {column: [entries[row] for row in chosen] for column, entries in self.extra.items()}
        return RewardTable(self.values[rows], self.names, self.weights, extra, self.metrics)

    @classmethod
    def joined(cls, tables: Sequence[RewardTable]) -> RewardTable:
        """Tables of the same rewards, one after the other; metrics are averaged over those that have them."""
        first = tables[0]
        columns = dict.fromkeys(column for table in tables for column in table.extra)
        extra = {
            column: [e for table in tables for e in table.extra.get(column, [None] * len(table.values))]
            for column in columns
        }
        names = dict.fromkeys(name for table in tables for name in table.metrics)
        found = {name: [table.metrics[name] for table in tables if name in table.metrics] for name in names}
        metrics = {name: sum(numbers) / len(numbers) for name, numbers in found.items()}
        return cls(torch.cat([table.values for table in tables]), first.names, first.weights, extra, metrics)

    def column(self, name: str) -> Tensor:
        """(N,) the values of one reward."""
        return self.values[:, self.names.index(name)]


def checked_values(result: Any, count: int, name: str) -> list[float]:
    """``count`` floats from what a reward returned, NaN for None.

    Args:
        result: None, or a sequence, array or tensor of numbers and None.
        count: Completions that the reward was called with.
        name: The reward's, for the error.

    Raises:
        RewardContractError: Naming the reward and what was wrong: count, type, NaN or infinity.

    Example:
        >>> checked_values([True, 0, None], count=3, name="accuracy")
        [1.0, 0.0, nan]
    """
    if result is None:
        return [math.nan] * count
    values = _as_sequence(result, name)
    if len(values) != count:
        raise RewardContractError(
            f"Reward '{name}' returned {len(values)} values for {count} completions. "
            "Return exactly one float or None per completion."
        )
    return [_as_float(value, row, name) for row, value in enumerate(values)]


def _as_sequence(result: Any, name: str) -> Sequence[Any]:
    if isinstance(result, Tensor | np.ndarray):
        if result.ndim != 1:
            raise RewardContractError(
                f"Reward '{name}' returned an array of shape {tuple(result.shape)}. Return one value per completion."
            )
        return result.tolist()
    if isinstance(result, Sequence) and not isinstance(result, str | bytes):
        return result
    hint = " Wrap the value in a list, one per completion." if isinstance(result, Real) else ""
    raise RewardContractError(
        f"Reward '{name}' returned a {type(result).__name__}, expected a list with one float or None per "
        f"completion.{hint}"
    )


def _as_float(value: Any, row: int, name: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, np.generic) or (isinstance(value, Tensor | np.ndarray) and value.ndim == 0):
        value = value.item()
    if not isinstance(value, Real):
        raise RewardContractError(
            f"Reward '{name}' returned {value!r:.80} ({type(value).__name__}) for completion {row}, "
            "expected a float or None."
        )
    number = float(value)
    if not math.isfinite(number):
        raise RewardContractError(
            f"Reward '{name}' returned {number} for completion {row}. Return None where the reward does not apply."
        )
    return number
