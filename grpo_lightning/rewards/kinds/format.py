"""Does the completion have the shape that was asked for?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from grpo_lightning.rewards.completion_reward import CompletionReward
from grpo_lightning.rewards.grading.notation import visible
from grpo_lightning.rewards.registry import register_reward
from grpo_lightning.rewards.text.extraction import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN
from grpo_lightning.rewards.text.timed_pattern import TimedPattern, check_matching


@register_reward("format")
@dataclass
class FormatReward(CompletionReward):
    r"""1.0 where the completion is ``<think>...</think><answer>...</answer>`` and nothing else, else 0.0.

    Each tag occurs once; white space may surround the two blocks; neither is empty, and characters that show nothing
    (zero-width ones, NUL) fill none.

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
    _pattern: TimedPattern | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            check_matching(self.match, self.time_limit)
            self._pattern = None if self.pattern is None else TimedPattern(self.pattern, self.match, self.time_limit)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        if self.pattern is None and self.match != "full":
            raise ValueError(f"{self.name}: match={self.match} has no effect without pattern. Set pattern too.")
        if self.pattern is not None and self.think_in_prompt:
            raise ValueError(f"{self.name}: think_in_prompt has no effect on a pattern. Write the pattern without it.")

    def score(self, completion: str, **row: Any) -> float | None:
        """1.0 or 0.0; None where the pattern ran out of time."""
        if self._pattern is not None:
            return float(self._pattern.found_in(completion))
        return float(has_reasoning_format((THINK_OPEN if self.think_in_prompt else "") + completion))


def has_reasoning_format(text: str) -> bool:
    """True for ``<think>...</think><answer>...</answer>`` with something in both. Linear time, no backtracking.

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
    thoughts, after = before.removeprefix(THINK_OPEN), after.strip()
    answer = after.removeprefix(ANSWER_OPEN).removesuffix(ANSWER_CLOSE)
    if ANSWER_OPEN in before or not after.startswith(ANSWER_OPEN):
        return False
    return bool(visible(thoughts).strip()) and bool(visible(answer).strip())
