"""One call of one reward: what it sees, and what it gave."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_lightning.rewards.base import (
    RESERVED,
    BaseRewardFunction,
    Completion,
    RewardContractError,
    RewardState,
    accepted_arguments,
)
from grpo_lightning.rewards.event_loop import in_thread
from grpo_lightning.rewards.table import checked_values
from grpo_lightning.types import Prompt


@dataclass(frozen=True)
class Rows:
    """The completions that a call sees, with all that rewards may know about them."""

    prompts: list[Prompt]
    completions: list[Completion]
    completions_ids: list[list[int]]
    columns: dict[str, list[Any]]
    state: RewardState

    def __post_init__(self) -> None:
        sizes = {"prompts": len(self.prompts), "completions_ids": len(self.completions_ids)}
        sizes |= {name: len(values) for name, values in self.columns.items()}
        wrong = ", ".join(f"{size} {name}" for name, size in sizes.items() if size != len(self))
        if wrong:
            raise RewardContractError(f"There are {len(self)} completions, but {wrong}: each needs one entry.")
        taken = ", ".join(sorted(RESERVED & set(self.columns)))
        if taken:
            raise RewardContractError(f"The dataset has columns named like reward arguments: {taken}. Rename them.")

    def __len__(self) -> int:
        return len(self.completions)

    def only(self, row: int) -> Rows:
        """One completion alone."""
        columns = {name: [values[row]] for name, values in self.columns.items()}
        return Rows([self.prompts[row]], [self.completions[row]], [self.completions_ids[row]], columns, self.state)

    def arguments(self) -> dict[str, Any]:
        """Fresh lists for every call: a reward that sorts its arguments in place must not disturb the next one."""
        return {
            "prompts": list(self.prompts),
            "completions": list(self.completions),
            "completions_ids": list(self.completions_ids),
            "trainer_state": self.state,
            **{name: list(values) for name, values in self.columns.items()},
        }


@dataclass
class Outcome:
    """What one reward gave for some rows."""

    values: list[float]
    """One per row, NaN for None."""
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    """Row -> why it has no value."""
    raised: int = 0
    """How many of the errors were exceptions."""
    seconds: float = 0.0
    """Wall time, the wait for a free thread included."""

    @classmethod
    def of_rows(cls, singles: Sequence[Outcome]) -> Outcome:
        """The outcomes of single rows as one."""
        merged = cls([single.values[0] for single in singles])
        for row, single in enumerate(singles):
            if single.errors:
                merged.errors[row] = single.errors[0]
            merged.raised += single.raised
            for column, values in single.extra.items():
                merged.extra.setdefault(column, [None] * len(singles))[row] = values[0]
            for metric, numbers in single.metrics.items():
                merged.metrics.setdefault(metric, []).extend(numbers)
        return merged


async def call_reward(reward: BaseRewardFunction, rows: Rows, slots: asyncio.Semaphore) -> Outcome:
    """Calls the reward once, in a thread as soon as a slot is free, or on this loop if it is asynchronous.

    Raises:
        RewardContractError: If a column is missing or the answer is malformed.
        Exception: Whatever the reward raises.
    """
    outcome = Outcome([])

    def log_extra(column: str, values: Sequence[Any]) -> None:
        if len(values) != len(rows):
            raise RewardContractError(
                f"Reward '{reward.name}' logged {len(values)} values as {column!r} for {len(rows)} completions."
            )
        outcome.extra[column] = list(values)

    def log_metric(name: str, value: float) -> None:
        outcome.metrics.setdefault(name, []).append(float(value))

    def log_error(row: int, message: str) -> None:
        outcome.errors[row] = message

    on_offer = {**rows.arguments(), "log_extra": log_extra, "log_metric": log_metric, "log_error": log_error}
    arguments = accepted_arguments(reward.__call__, on_offer, reward.name)
    if reward.is_async:
        result: Any = reward(**arguments)
    else:
        async with slots:
            result = await in_thread(lambda: reward(**arguments))
    if inspect.isawaitable(result):  # also where a plain function returns another one's coroutine
        result = await result
    outcome.values = checked_values(result, len(rows), reward.name)
    return outcome
