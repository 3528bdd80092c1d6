"""Addition behind three worked turns: a task that a small chat model half knows. Standard library only.

SmolLM2-135M-Instruct answers a fourth of the two-digit sums when it samples, and has different rewards in two fifths of the
groups of 8: enough to learn from, and much left to learn. Without the worked turns it would first have to learn the format.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any

OPERANDS = {"add2": (10, 99), "add2_small": (10, 49), "add1": (1, 9)}
"""Smallest and largest operand of each task."""
WORKED = ((63, 11), (48, 57), (34, 44))
"""The same three for every prompt; never asked."""
HELD_OUT_SHARE = 0.1


def conversation(a: int, b: int) -> list[dict[str, str]]:
    """The worked turns, then the question."""
    turns = []
    for x, y in WORKED:
        turns.append({"role": "user", "content": f"What is {x} + {y}?"})
        turns.append({"role": "assistant", "content": f"{x} + {y} = {x + y}"})
    return [*turns, {"role": "user", "content": f"What is {a} + {b}?"}]


def addition_rows(task: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows to train on and held-out ones, each in a fixed random order; no sum is in both, in either order of operands."""
    smallest, largest = OPERANDS[task]
    pairs = set(combinations_with_replacement(range(smallest, largest + 1), 2))
    unordered = sorted(pairs - {tuple(sorted(pair)) for pair in WORKED})
    draw = random.Random(0)
    draw.shuffle(unordered)
    cut = int(len(unordered) * HELD_OUT_SHARE)
    parts = []
    for part in (unordered[cut:], unordered[:cut]):
        ordered = sorted({pair for a, b in part for pair in ((a, b), (b, a))})
        draw.shuffle(ordered)
        parts.append([{"prompt": conversation(a, b), "ground_truth": str(a + b)} for a, b in ordered])
    return parts[0], parts[1]


def right_sum(completions: Sequence[Any], ground_truth: Sequence[str], **columns: Any) -> list[float]:
    """1.0 where the last number of a completion is the sum, else 0.0; TRL's form of a reward, which both sides take.

    Example:
        >>> right_sum(["24 + 18 = 42", [{"role": "assistant", "content": "It is 41."}], "no idea"], ["42", "42", "42"])
        [1.0, 0.0, 0.0]
    """
    texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
    last = [re.findall(r"\d+", text.replace(",", ""))[-1:] for text in texts]
    return [float(numbers == [truth]) for numbers, truth in zip(last, ground_truth, strict=True)]
