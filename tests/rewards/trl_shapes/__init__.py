"""Reward functions in the shapes in which people bring them along from TRL, and the batch that they are called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SHAPES: dict[str, Shape] = {}


@dataclass(frozen=True)
class Shape:
    """One reward, made anew for each call where it keeps something."""

    make: Callable[[], Callable[..., Any]]
    forms: tuple[str, ...] = ("text", "chat")


def shape(reward: Callable[..., Any]) -> Callable[..., Any]:
    """Adds a reward function."""
    return add(reward.__name__, lambda: reward) and reward


def chat_only(reward: Callable[..., Any]) -> Callable[..., Any]:
    """Adds one that reads ``completion[0]["content"]``."""
    return add(reward.__name__, lambda: reward, ("chat",)) and reward


def add(name: str, make: Callable[[], Callable[..., Any]], forms: tuple[str, ...] = ("text", "chat")) -> Shape:
    """Adds what ``make`` returns."""
    assert name not in SHAPES, name
    SHAPES[name] = Shape(make, forms)
    return SHAPES[name]


def text_of(completion: Any) -> str:
    """As most of these functions read a completion."""
    return completion if isinstance(completion, str) else completion[0]["content"]


TEXTS = [
    "<think>\n6 times 7\n</think>\n<answer>\n42\n</answer>",
    "Step 1: First, multiply.\n- six\nNext, \\boxed{41}",
    "<think>short</think><answer>\\boxed{\\frac{1}{2}}</answer>",
    "the the the the the the answer is 0.5",
    "<reasoning>\n10\n</reasoning>\n<answer>\n7\n</answer>\n",
    "```python\nprint(7)\n```\n#### 7",
]
ANSWERS = ["42", "42", "\\frac{1}{2}", "\\frac{1}{2}", "7", "7"]
COLUMNS = {
    "answer": ANSWERS,
    "solution": [f"${answer}$" for answer in ANSWERS],
    "ground_truth": ANSWERS,
    "target": [42, 42, 0, 0, 7, 7],
    "nums": [[6, 7], [6, 7], [1, 2], [1, 2], [3, 4], [3, 4]],
    "data_source": ["gsm8k", "gsm8k", "math", "math", "gsm8k", "gsm8k"],
    "reward_model": [{"style": "rule", "ground_truth": answer} for answer in ANSWERS],
    "language": ["python"] * 6,
    "weight_of_row": [0.5, 0.5, 1.0, 1.0, None, 2.0],
}
"""Three prompts with two completions each."""
IDS = [[11, 12, 2], [13] * 8, [14], [15] * 12, [16, 17, 18, 2], [19] * 5]
EOS = 2
