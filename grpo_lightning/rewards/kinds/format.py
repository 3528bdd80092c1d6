"""Does the completion have the shape that was asked for?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import regex  # type: ignore[import-untyped]  # ships no types

from grpo_lightning.messages import Prompt
from grpo_lightning.rewards.base import BaseRewardFunction, Completion, completion_text
from grpo_lightning.rewards.registry import register_reward
from grpo_lightning.rewards.text.extraction import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN


@register_reward("format")
@dataclass
class FormatReward(BaseRewardFunction):
    r"""1.0 where the completion is ``<think>...</think><answer>...</answer>`` and nothing else, else 0.0.

    Each tag occurs once; white space may surround the two blocks; the answer is not empty.

    Args:
        name: What metrics and errors call this reward.
        weight: Factor in the total reward.
        pattern: A regular expression (``regex`` module, dot matches newlines) instead of the tags.
        match: Whether ``pattern`` must match the ``full`` completion or is ``search``-ed in it.
        think_in_prompt: The chat template ends the prompt with ``<think>``, so the completion starts after it.
        time_limit: Seconds that ``pattern`` may take on one completion before that completion's reward is None.

    Example:
        >>> reward = FormatReward()
        >>> reward(prompts=["p"] * 2, completions=["<think>6 * 7</think>\n<answer>42</answer>", "42"])
        [1.0, 0.0]
    """

    name: str = "format"
    pattern: str | None = None
    match: Literal["full", "search"] = "full"
    think_in_prompt: bool = False
    time_limit: float = 1.0
    _compiled: Any = field(default=None, init=False, repr=False, compare=False)

    scope = "completion"
    batched = True

    def __post_init__(self) -> None:
        if self.match not in ("full", "search"):
            raise ValueError(f"{self.name}: match={self.match!r} is unknown. Choose full or search.")
        if self.time_limit <= 0:
            raise ValueError(f"{self.name}: time_limit={self.time_limit} seconds leaves no time. Choose more than 0.")
        if self.pattern is None:
            if self.match != "full":
                raise ValueError(f"{self.name}: match={self.match} has no effect without pattern. Set pattern too.")
            return
        if self.think_in_prompt:
            raise ValueError(f"{self.name}: think_in_prompt has no effect on a pattern. Write the pattern without it.")
        try:
            self._compiled = regex.compile(self.pattern, regex.DOTALL)
        except regex.error as error:
            raise ValueError(f"{self.name}: pattern={self.pattern!r} is no regular expression: {error}.") from error

    def __call__(
        self,
        prompts: list[Prompt],
        completions: list[Completion],
        completions_ids: list[list[int]] | None = None,
        trainer_state: Any | None = None,
        log_error: Callable[[int, str], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """1.0 or 0.0 per completion; None where the pattern ran out of time."""
        values: list[float | None] = []
        for row, completion in enumerate(completions):
            text = completion_text(completion)
            try:
                values.append(float(self._matches(text)))
            except TimeoutError:
                values.append(None)
                if log_error is not None:
                    log_error(row, f"pattern={self.pattern!r} took more than time_limit={self.time_limit:g} s")
        return values

    def _matches(self, text: str) -> bool:
        if self._compiled is None:
            return has_reasoning_format((THINK_OPEN if self.think_in_prompt else "") + text)
        match = self._compiled.fullmatch if self.match == "full" else self._compiled.search
        # concurrent: the search lets go of the interpreter lock, so that a slow pattern does not stop the trainer.
        return match(text, timeout=self.time_limit, concurrent=True) is not None


def has_reasoning_format(text: str) -> bool:
    """True for exactly ``<think>...</think><answer>...</answer>``, white space aside. Linear time, no backtracking.

    Example:
        >>> has_reasoning_format("<think>a</think><answer>b</answer>"), has_reasoning_format("<answer>b</answer>")
        (True, False)
    """
    text = text.strip()
    if any(text.count(tag) != 1 for tag in (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)):
        return False
    if not (text.startswith(THINK_OPEN) and text.endswith(ANSWER_CLOSE)):
        return False
    before, _, after = text.partition(THINK_CLOSE)
    after = after.strip()
    answer = after.removeprefix(ANSWER_OPEN).removesuffix(ANSWER_CLOSE)
    return ANSWER_OPEN not in before and after.startswith(ANSWER_OPEN) and bool(answer.strip())
