"""Does a pattern occur in the completion, or stay away from it?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import regex  # type: ignore[import-untyped]  # ships no types

from grpo_lightning.messages import Prompt
from grpo_lightning.rewards.base import BaseRewardFunction, Completion, RewardContractError, completion_text
from grpo_lightning.rewards.registry import register_reward


@register_reward("regex")
@dataclass
class RegexReward(BaseRewardFunction):
    r"""1.0 where the pattern matches (with ``forbid``: where it does not), else 0.0; None where it ran out of time.

    Args:
        name: What metrics and errors call this reward.
        weight: Factor in the total reward.
        pattern: A regular expression (``regex`` module; flags as in ``(?i)``, dot matches newlines).
        pattern_key: Dataset column with the pattern of each row, instead of ``pattern``.
        match: Whether it is ``search``-ed in the completion or must match the ``full`` completion.
        forbid: Rewards its absence.
        time_limit: Seconds per completion.

    Example:
        >>> reward = RegexReward(pattern=r"(?i)\bas an ai\b", forbid=True)
        >>> reward(prompts=["p"] * 2, completions=["As an AI, I cannot.", "The sum is 4."])
        [0.0, 1.0]
    """

    name: str = "regex"
    pattern: str | None = None
    pattern_key: str | None = None
    match: Literal["search", "full"] = "search"
    forbid: bool = False
    time_limit: float = 1.0
    _compiled: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    scope = "completion"

    def __post_init__(self) -> None:
        if (self.pattern is None) == (self.pattern_key is None):
            raise ValueError(f"{self.name}: set pattern, or pattern_key to a column with one per row; not both.")
        if self.match not in ("search", "full") or self.time_limit <= 0:
            raise ValueError(
                f"{self.name}: match={self.match!r} must be search or full, time_limit={self.time_limit} above 0."
            )
        if self.pattern is not None:
            try:
                self._compile(self.pattern)
            except RewardContractError as error:
                raise ValueError(str(error)) from error

    def __call__(
        self,
        prompts: list[Prompt],
        completions: list[Completion],
        completions_ids: list[list[int]] | None = None,
        trainer_state: Any | None = None,
        log_error: Callable[[int, str], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """1.0, 0.0 or None per completion; None also for a row without a pattern.

        Raises:
            RewardContractError: If the column is missing or a pattern of it cannot be read.
        """
        patterns: list[Any] = [self.pattern] * len(completions)
        if self.pattern_key is not None:
            if self.pattern_key not in columns:
                raise RewardContractError(f"Reward '{self.name}' needs the column pattern_key={self.pattern_key!r}.")
            patterns = columns[self.pattern_key]
        values: list[float | None] = []
        for row, (completion, pattern) in enumerate(zip(completions, patterns, strict=True)):
            try:
                found = None if pattern is None else self._found(pattern, completion_text(completion))
                values.append(None if found is None else float(found != self.forbid))
            except TimeoutError:
                values.append(None)
                if log_error is not None:
                    log_error(row, f"pattern {pattern!r:.200} took more than time_limit={self.time_limit:g} s")
        return values

    def _found(self, pattern: str, text: str) -> bool:
        compiled = self._compile(pattern)
        look = compiled.search if self.match == "search" else compiled.fullmatch
        # concurrent: the search lets go of the interpreter lock, so that a slow pattern does not stop the trainer.
        return look(text, timeout=self.time_limit, concurrent=True) is not None

    def _compile(self, pattern: str) -> Any:
        if pattern not in self._compiled:
            try:
                self._compiled[pattern] = regex.compile(pattern, regex.DOTALL)
            except regex.error as error:
                raise RewardContractError(
                    f"Reward '{self.name}': {pattern!r:.200} is no regular expression: {error}."
                ) from error
        return self._compiled[pattern]
