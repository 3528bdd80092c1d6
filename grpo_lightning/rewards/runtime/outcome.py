"""What one reward gave: values, and what it logged while it scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_lightning.rewards.base import RewardContractError
from grpo_lightning.rewards.runtime.answer_checks import ListedReward
from grpo_lightning.rewards.text.valid_text import valid_text


class CallTimeoutError(TimeoutError):
    """A call that was given up after its time limit."""


@dataclass
class Outcome:
    """What one reward gave for some rows."""

    rewards: list[float]
    """One per row, NaN for None."""
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    """Row -> why it has no value."""
    raised: int = 0
    """How many of the errors were exceptions or calls that ran out of time."""
    timeouts: int = 0
    """Calls that ran out of time."""
    seconds: list[float] = field(default_factory=list)
    """Wall time of each call, without the wait for a free slot."""

    @classmethod
    def failed(cls, count: int, text: str, timeouts: int = 0) -> Outcome:
        """No value for any of ``count`` rows."""
        return cls([math.nan] * count, errors=dict.fromkeys(range(count), text), raised=count, timeouts=timeouts)

    @classmethod
    def merged(cls, count: int, parts: Iterable[tuple[Sequence[int], Outcome]]) -> Outcome:
        """The outcomes of some rows each as that of ``count`` rows; their order in time makes no difference."""
        merged = cls([math.nan] * count)
        for rows, part in parts:
            for place, row in enumerate(rows):
                merged.rewards[row] = part.rewards[place]
                if place in part.errors:
                    merged.errors[row] = part.errors[place]
            merged.raised += part.raised
            merged.timeouts += part.timeouts
            merged.seconds += part.seconds
            for column, values in part.extra.items():
                entries = merged.extra.setdefault(column, [None] * count)
                for row, value in zip(rows, values, strict=True):
                    entries[row] = value
            for metric, numbers in part.metrics.items():
                merged.metrics.setdefault(metric, []).extend(numbers)
        return merged


def lists_of(names: Sequence[str], outcomes: Sequence[Outcome]) -> dict[str, list[tuple[float, ...] | None]]:
    """What rewards gave as lists, by reward and row; a reward that gave none is left out."""
    lists = {
        name: [value.entries if isinstance(value, ListedReward) else None for value in outcome.rewards]
        for name, outcome in zip(names, outcomes, strict=True)
    }
    return {name: entries for name, entries in lists.items() if any(entries)}


@dataclass
class Loggers:
    """What a reward may call while it scores ``count`` rows; it writes into an outcome."""

    reward: str
    count: int
    outcome: Outcome

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """One value per completion, for the table of samples.

        Raises:
            RewardContractError: If there are more or fewer.
        """
        if len(values) != self.count:
            raise RewardContractError(
                f"Reward '{self.reward}' logged {len(values)} values as {column!r} for {self.count} completions."
            )
        self.outcome.extra[column] = list(values)

    def log_metric(self, name: str, value: float) -> None:
        """A number that is averaged into the logged metrics; called step or epoch, which loggers count by, ``REWARD/step``."""
        name = valid_text(str(name))
        name = f"{self.reward}/{name}" if name in ("step", "epoch") else name
        self.outcome.metrics.setdefault(name, []).append(float(value))

    def log_error(self, row: int, message: str) -> None:
        """A completion that could not be scored."""
        self.outcome.errors[row] = message

    def arguments(self) -> dict[str, Callable[..., None]]:
        """By the names under which rewards ask for them."""
        return {"log_extra": self.log_extra, "log_metric": self.log_metric, "log_error": self.log_error}
