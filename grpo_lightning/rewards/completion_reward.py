"""A reward that looks at one completion at a time: one method, one row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from typing import Any

from grpo_lightning.messages import Prompt
from grpo_lightning.rewards.base import BaseRewardFunction, Completion, completion_text, dataset_columns
from grpo_lightning.rewards.row_columns import require_column

OF_THE_CALL = ("prompt", "completion_ids", "trainer_state")
"""What ``score`` is given beside the columns of the row."""


@dataclass
class CompletionReward(BaseRewardFunction):
    """Base class for rewards whose value depends on one completion and its row alone.

    Args:
        name: What metrics and errors call this reward.
        weight: Factor in the total reward.

    Example:
        >>> class Names(CompletionReward):
        ...     def score(self, completion, city=None, **row):
        ...         return float(city in completion)
        >>> Names()(prompts=["p", "p"], completions=["Paris!", "Rome!"], city=["Paris", "Paris"])
        [1.0, 0.0]
    """

    scope = "completion"
    batched = True

    @abstractmethod
    def score(self, completion: str, **row: Any) -> float | None:
        """The reward of one completion, or None where it does not apply.

        Args:
            completion: The text that the policy wrote.
            row: The columns of its dataset row but one called completion, and ``prompt``, ``completion_ids`` and ``trainer_state``.

        Raises:
            TimeoutError: Where it could not be scored in time; the value is None then, and the message is counted as an
                error of this completion.
        """

    def __call__(
        self,
        prompts: list[Prompt],
        completions: list[Completion],
        completions_ids: list[list[int]] | None = None,
        trainer_state: Any | None = None,
        log_error: Callable[[int, str], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """``score`` of each completion."""
        values: list[float | None] = []
        for n, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            row = {name: column[n] for name, column in dataset_columns(columns).items() if name != "completion"}
            row |= {"prompt": prompt, "trainer_state": trainer_state}
            row["completion_ids"] = None if completions_ids is None else completions_ids[n]
            try:
                values.append(self.score(completion_text(completion), **row))
            except TimeoutError as error:
                values.append(None)
                if log_error is not None:
                    log_error(n, str(error))
        return values

    def check_columns(self, columns: Collection[str]) -> None:
        """Refuses data without a column that a setting names, see ``of_row``."""
        super().check_columns(columns)
        settings = {field.name for field in fields(self)}
        for key in sorted(f"{setting}_key" for setting in settings if f"{setting}_key" in settings):
            require_column(self, key, columns)

    def of_row(self, setting: str, row: dict[str, Any]) -> Any:
        """A setting, or this row's own where ``<setting>_key`` names a column.

        Raises:
            RewardContractError: If there is no such column.
        """
        column = require_column(self, f"{setting}_key", row)
        return getattr(self, setting) if column is None else row[column]
