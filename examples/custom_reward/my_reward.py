"""Two rewards: a function, and a class with settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_lightning import BaseRewardFunction


def right_answer(completions: Sequence[Any], ground_truth: Sequence[str], **columns: Any) -> list[float]:
    """1.0 where the text between <answer> and </answer> is the column ``ground_truth`` of the dataset, else 0.0."""
    return [float(_answer(text_of(c)) == str(truth)) for c, truth in zip(completions, ground_truth, strict=True)]


def text_of(completion: Any) -> str:
    """The text of a completion: prompts that are conversations have completions that are lists of messages."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def _answer(text: str) -> str | None:
    found = re.search(r"<answer>(.*?)</answer>", text)
    return found.group(1) if found else None


@dataclass
class Brevity(BaseRewardFunction):
    """1.0 for an empty completion, falling to 0.0 at ``tokens`` tokens and beyond.

    Args:
        name: What metrics call it.
        weight: Factor in the total reward.
        tokens: Where it reaches 0.
    """

    name: str = "brevity"
    weight: float = 1.0
    tokens: int = 100

    def __call__(self, completions_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
        """One value per completion, in [0, 1]."""
        return [max(0.0, 1.0 - len(ids) / self.tokens) for ids in completions_ids]
