"""Sets of real numbers that have several notations, rewritten as unions of intervals."""

from __future__ import annotations

import re
from itertools import pairwise

from grpo_lightning.rewards.grading.literals import literal

_AWAY = re.compile(r"\|\s?[a-z]\s?(?:([-+])\s?([0-9./]+)\s?)?\|\s?([<>≤≥])\s?(.+)")
_LEFT_OUT = re.compile(r"(?:[a-z]\s?∈\s?)?(?:ℝ|\(-∞,\s?\+?∞\))\s?(?:\\setminus|\\backslash|∖|-)\s?⦃(.+)⦄")
_TURNED = re.compile(r"([][])([^][(){}⦃⦄]+?)\s?([,;])([^][(){}⦃⦄]+)([][])")
_AGAIN = re.compile(r"^\s?[a-z]\s?≠")
_UNEQUAL = re.compile(r"(?:[a-z]\s?)?≠\s?(.+)")


def as_intervals(text: str) -> str:
    r"""``|x| > 8``, ``x ≠ 1``, ``ℝ \setminus ⦃1⦄`` and the French ``]0;1]`` as intervals; any other text as it is.

    Example:
        >>> as_intervals("|x| > 8"), as_intervals("|x| ≤ 2"), as_intervals("x ≠ 1")
        ('(-∞, -8) ∪ (8, ∞)', '[-2, 2]', '(-∞, 1) ∪ (1, ∞)')
        >>> as_intervals("|x - 2| < 3"), as_intervals("|x + 1| ≥ 2")
        ('(-1, 5)', '(-∞, -3] ∪ [1, ∞)')
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
        sign, shift, relation, bound = away.groups()
        value, middle = literal(bound), literal(shift or "0")
        if value is None or middle is None or value <= 0:
            return text
        ends = [f"-{bound}", bound]
        if shift:
            middle = middle if sign == "-" else -middle
            ends = [str(middle - value), str(middle + value)]
        if relation in "<≤":
            return f"({ends[0]}, {ends[1]})" if relation == "<" else f"[{ends[0]}, {ends[1]}]"
        return f"(-∞, {ends[0]}) ∪ ({ends[1]}, ∞)" if relation == ">" else f"(-∞, {ends[0]}] ∪ [{ends[1]}, ∞)"
    hole = _LEFT_OUT.fullmatch(text) or _UNEQUAL.fullmatch(text)
    return text if hole is None else _without(re.split(r",|\band\b|\bor\b", hole[1])) or text


def _without(points: list[str]) -> str | None:
    """All real numbers but these."""
    points = [_AGAIN.sub("", point).strip() for point in points]
    points = [one for point in points for one in ([point[1:], f"-{point[1:]}"] if point.startswith("±") else [point])]
    values = {point: literal(point) for point in points}
    ordered = sorted((value, point) for point, value in values.items() if value is not None)
    if len(ordered) != len(points):
        return None
    ends = ["-∞", *(point for _, point in ordered), "∞"]
    return " ∪ ".join(f"({left}, {right})" for left, right in pairwise(ends))
