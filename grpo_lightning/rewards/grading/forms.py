"""What answers are made of: single values, groups of them, equations and inequalities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grpo_lightning.rewards.grading.measures import Quantity


@dataclass(frozen=True)
class Value:
    """One value: a quantity, words, or a formula."""

    text: str
    """As ``tidy`` wrote it."""
    quantity: Quantity | None = None
    is_words: bool = False


@dataclass(frozen=True)
class Group:
    """Several values."""

    kind: str
    """``list`` (bare commas, "or", "and"), ``set``, ``union``, ``matrix``, ``conditional`` (``2n, n ∈ ℤ``), or a pair of
    brackets: ``()``, ``[)``, ..."""
    items: tuple[Shape, ...]
    name: str = ""
    """Of the variable, where an interval was written as ``x > 2``."""
    joined: str = ""
    """What stands between the items of a list: ``or``, ``and``, ``∧``; empty for commas and for a mixture."""


@dataclass(frozen=True)
class Equation:
    """``x = 2``, ``y = 2x + 1 = ...`` or ``x^2 + y^2 = 1``."""

    name: str
    """What is named on the left, ``x`` or ``f(x)`` or ``Area``; empty where the left side is a formula."""
    parts: tuple[str, ...]
    """The sides, without the name."""
    rounded: str = ""
    """The last side, where it is a formula's value in decimals: ``2√3 ≈ 3.46``."""


@dataclass(frozen=True)
class Inequality:
    """A relation other than equality that is no interval of one variable."""

    relations: tuple[str, ...]
    sides: tuple[str, ...]


Shape = Value | Group | Equation | Inequality


def distinct(items: Sequence[Shape]) -> list[Shape]:
    """Without members that occur twice as text or number; equal formulas count as often as they are written."""
    kept: dict[object, Shape] = {}
    for item in items:
        number = item.quantity.number.value if isinstance(item, Value) and item.quantity is not None else None
        kept.setdefault(item if number is None else number, item)
    return list(kept.values())
