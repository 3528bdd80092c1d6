"""Relations in words: ``at least 5``, ``x is greater than 2``, ``10 or more``, ``different from 7``; and
sets of real numbers that have several notations, as unions of intervals.
"""

from __future__ import annotations

import re
from itertools import pairwise

from grpo_lightning.rewards.grading.literals import literal
from grpo_lightning.rewards.grading.number_words import number_in_words

_WORDS = {
    "≥": "at least|no less than|no fewer than|not less than|(?:greater|more|larger) than or equal to|a minimum of",
    "≤": "at most|no (?:more|greater) than|not (?:more|greater) than|(?:less|smaller|fewer) than or equal to|up to|a maximum of|not exceeding",
    ">": "greater than|more than|larger than|bigger than|higher than|above|over|exceeding|exceeds",
    "<": "less than|fewer than|smaller than|lower than|below|under",
    "≠": "different from|other than|not equal to|unequal to|distinct from|anything but|anything except|except(?: for)?|excluding|not",
}
_BEFORE = re.compile(
    r"(?:(?:(?P<name>[a-z])|all (?:real )?(?:numbers|reals|values)|any (?:real )?number|(?:real )?numbers|it)(?= )(?: [a-z])? )?"
    r"(?:that )?(?:(?:is|are|must be|has to be|can be|should be) )?"
    rf"(?:strictly )?(?:{'|'.join(f'(?P<r{place}>{words})' for place, words in enumerate(_WORDS.values()))}) (?P<bound>.+)",
    re.IGNORECASE,
)
_BEHIND = re.compile(
    r"(?P<bound>.+?)(?:,)? (?:or|and) (?:(?P<up>more|greater|above|higher|larger|over|up|older)|less|fewer|below|lower|smaller|under|younger)"
    r"(?P<noun> [a-z]+)?",
    re.IGNORECASE,
)


_BETWEEN = re.compile(r"(?:[a-z] is |[a-z] lies |all numbers )?between (\S+) and (\S+)", re.IGNORECASE)


def in_signs(text: str) -> str:
    """A relation in words with its sign; any other text as it is.

    Example:
        >>> in_signs("x is greater than 2"), in_signs("at least 5"), in_signs("10 or more"), in_signs("more apples")
        ('x > 2', '≥ 5', '≥ 10', 'more apples')
    """
    if len(text) > 80 or " " not in text:
        return text
    before = _BEFORE.fullmatch(text)
    if before is not None and _begins_with_number(before["bound"]):
        sign = next(sign for place, sign in enumerate(_WORDS) if before[f"r{place}"])
        return f"{before['name'] or ''} {sign} {_in_figures(before['bound'])}".strip()
    between = _BETWEEN.fullmatch(text)
    if between is not None and all(literal(end) is not None for end in between.groups()):
        return f"({between[1]}, {between[2]})"
    behind = _BEHIND.fullmatch(text)
    if behind is not None and _begins_with_number(behind["bound"]):
        return f"{'≥' if behind['up'] else '≤'} {_in_figures(behind['bound'])}{behind['noun'] or ''}"
    return text


def _begins_with_number(text: str) -> bool:
    if number_in_words(text) is not None:
        return True
    first = text.split(maxsplit=1)[0].lstrip("$€£-")
    return literal(first.rstrip("%")) is not None or first.startswith(("\\frac", "\\sqrt", "π"))


def _in_figures(bound: str) -> str:
    found = number_in_words(bound)
    return bound if found is None else " ".join([str(found[0]), *found[1]])


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
