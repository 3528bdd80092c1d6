"""Intervals out of inequalities of one variable, and what two of them have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from grpo_lightning.rewards.grading.forms import Group, Inequality, Shape, Value

FLIPPED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤", "≠": "≠", "=": "=", "≈": "≈"}
_INFINITE = ("∞", "+∞")


def interval(kind: str, ends: tuple[Shape, ...], name: str = "") -> Shape:
    """An interval or pair; the infinite end is open however it is written."""
    texts = [end.text if isinstance(end, Value) else "" for end in ends]
    if texts[0] == "-∞" and texts[1] in _INFINITE:
        return Value("ℝ", is_words=True)
    left = "(" if texts[0] == "-∞" else kind[0]
    right = ")" if texts[1] in _INFINITE else kind[1]
    return Group(left + right, ends, name)


def from_inequality(
    relations: Sequence[str], sides: Sequence[str], is_variable: Callable[[str], bool], parse: Callable[[str], Shape]
) -> Shape:
    """The values of its variable, or the inequality where it has none on a side of its own.

    Args:
        relations: ``<``, ``≤`` and so on, from left to right.
        sides: What stands between them; an empty first one is a variable left out.
        is_variable: Of a side.
        parse: Reads the other sides.
    """
    if len(sides) == 2 and is_variable(sides[1]) and sides[1] and not is_variable(sides[0]):
        relations, sides = [FLIPPED.get(relations[0], relations[0])], [sides[1], sides[0]]
    if len(sides) == 2 and is_variable(sides[0]) and sides[1] and not is_variable(sides[1]) and relations[0] in "<>≤≥":
        end = parse(sides[1])
        if relations[0] in ">≥":
            return interval("(" + ")" if relations[0] == ">" else "[)", (end, Value("∞")), sides[0])
        return interval("()" if relations[0] == "<" else "(]", (Value("-∞"), end), sides[0])
    if len(sides) == 3 and is_variable(sides[1]):
        if set(relations) <= set(">≥"):
            relations, sides = [FLIPPED[one] for one in reversed(relations)], sides[::-1]
        if set(relations) <= set("<≤"):
            kind = ("(" if relations[0] == "<" else "[") + (")" if relations[1] == "<" else "]")
            return interval(kind, (parse(sides[0]), parse(sides[2])), sides[1])
    return Inequality(tuple(relations), tuple(sides))


def intersection(items: Sequence[Shape]) -> Group | None:
    """What two half-lines have in common, ``x > 2`` and ``x < 5``; None for other shapes, and for nothing in common."""
    if len(items) != 2 or not all(isinstance(item, Group) and len(item.items) == 2 for item in items):
        return None
    first, second = (item for item in items if isinstance(item, Group))
    if _end(first, 0) is None:
        first, second = second, first
    low, high = _end(first, 0), _end(second, 1)
    if low is None or high is None or first.name != second.name or low >= high:
        return None
    if getattr(first.items[1], "text", "") not in _INFINITE or getattr(second.items[0], "text", "") != "-∞":
        return None
    return Group(first.kind[0] + second.kind[1], (first.items[0], second.items[1]), first.name)


def _end(half_line: Group, place: int) -> Fraction | None:
    end = half_line.items[place]
    return end.quantity.number.value if isinstance(end, Value) and end.quantity is not None else None
