"""Does a pattern occur in the completion, or stay away from it?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from grpo_lightning.rewards.base import RewardContractError
from grpo_lightning.rewards.completion_reward import CompletionReward
from grpo_lightning.rewards.registry import register_reward
from grpo_lightning.rewards.text.timed_pattern import TimedPattern, check_matching


@register_reward("regex")
@dataclass
class RegexReward(CompletionReward):
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
    _compiled: dict[str, TimedPattern] = field(default_factory=dict, init=False, repr=False, compare=False)

    batched = False  # a pattern may take its whole time

    def __post_init__(self) -> None:
        if (self.pattern is None) == (self.pattern_key is None):
            raise ValueError(f"{self.name}: set pattern, or pattern_key to a column with one per row; not both.")
        try:
            check_matching(self.match, self.time_limit)
            if self.pattern is not None:
                self._compile(self.pattern)
        except ValueError as error:
            raise ValueError(str(error) if self.name in str(error) else f"{self.name}: {error}") from error

    def score(self, completion: str, **row: Any) -> float | None:
        """1.0 or 0.0; None for a row without a pattern and where it ran out of time.

        Raises:
            RewardContractError: If the column is missing or a pattern of it cannot be read.
        """
        pattern = self.of_row("pattern", row)
        return None if pattern is None else float(self._compile(pattern).found_in(completion) != self.forbid)

    def _compile(self, pattern: str) -> TimedPattern:
        if pattern not in self._compiled:
            try:
                self._compiled[pattern] = TimedPattern(pattern, self.match, self.time_limit)
            except ValueError as error:
                raise RewardContractError(f"Reward '{self.name}': {error}") from error
        return self._compiled[pattern]
