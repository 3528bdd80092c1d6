"""Sets of real numbers that have several notations, rewritten as unions of intervals."""

from __future__ import annotations

import re
from itertools import pairwise

from grpo_lightning.rewards.grading.literals import literal

_AWAY = re.compile(r"\|\s?[a-z]\s?\|\s?([<>≤≥])\s?(.+)")
_LEFT_OUT = re.compile(r"(?:[a-z]\s?∈\s?)?(?:ℝ|\(-∞,\s?\+?∞\))\s?(?:\\setminus|\\backslash|∖|-)\s?⦃(.+)⦄")
_TURNED = re.compile(r"([][])([^][(){}⦃⦄]+?)\s?([,;])([^][(){}⦃⦄]+)([][])")
_UNEQUAL = re.compile(r"[a-z]\s?≠\s?(.+)")


def as_intervals(text: str) -> str:
    r"""``|x| > 8``, ``x ≠ 1``, ``ℝ \setminus ⦃1⦄`` and the French ``]0;1]`` as intervals; any other text as it is.

    Example:
        >>> as_intervals("|x| > 8"), as_intervals("|x| ≤ 2"), as_intervals("x ≠ 1")
        ('(-∞, -8) ∪ (8, ∞)', '[-2, 2]', '(-∞, 1) ∪ (1, ∞)')
        >>> as_intervals("]0;1,5]"), as_intervals("[0,1[")
        ('(0,1.5]', '[0,1)')
        >>> as_intervals("ℝ \\setminus ⦃2, -1⦄"), as_intervals("x ≠ y")
        ('(-∞, -1) ∪ (-1, 2) ∪ (2, ∞)', 'x ≠ y')
    """
    turned = _TURNED.fullmatch(text)
    if turned is not None and (turned[1] == "]" or turned[5] == "["):
        ends = [end.replace(",", ".") if turned[3] == ";" else end for end in (turned[2], turned[4])]
        return f"{'[' if turned[1] == '[' else '('}{ends[0]},{ends[1]}{']' if turned[5] == ']' else ')'}"
    away = _AWAY.fullmatch(text)
    if away is not None:
        relation, bound = away.groups()
        value = literal(bound)
        if value is None or value <= 0:
            return text
        if relation in "<≤":
            return f"(-{bound}, {bound})" if relation == "<" else f"[-{bound}, {bound}]"
        return f"(-∞, -{bound}) ∪ ({bound}, ∞)" if relation == ">" else f"(-∞, -{bound}] ∪ [{bound}, ∞)"
    hole = _LEFT_OUT.fullmatch(text) or _UNEQUAL.fullmatch(text)
    return text if hole is None else _without(hole[1].split(",")) or text


def _without(points: list[str]) -> str | None:
    """All real numbers but these."""
    values = {point.strip(): literal(point) for point in points}
    ordered = sorted((value, point) for point, value in values.items() if value is not None)
    if len(ordered) != len(points):
        return None
    ends = ["-∞", *(point for _, point in ordered), "∞"]
    return " ∪ ".join(f"({left}, {right})" for left, right in pairwise(ends))
