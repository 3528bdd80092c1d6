"""The value of a sum or product of plain numbers, as in ``48 + 24 = 72``. Parsed, never evaluated."""

from __future__ import annotations

import re
from fractions import Fraction

from grpo_lightning.rewards.grading.braces import separators_outside, split_outside, wrapped
from grpo_lightning.rewards.grading.literals import literal

MAX_DEPTH = 8
_PLUS_MINUS = re.compile(r"(?<=[0-9)}%])\s*([-+])")
_TIMES = re.compile(r"\s*([*/])")


def arithmetic(text: str, depth: int = 0) -> Fraction | None:
    """The value of numbers joined by ``+ - * /`` and brackets; None for anything else.

    Example:
        >>> arithmetic("48 + 24"), arithmetic("2*(3 - 1/2)"), arithmetic("2 + x")
        (Fraction(72, 1), Fraction(5, 1), None)
    """
    text = text.strip()
    value = literal(text)
    if value is not None or depth > MAX_DEPTH:
        return value
    inner = wrapped(text)
    if inner is not None and text[0] in "([{":
        return arithmetic(inner, depth + 1)
    for signs in (_PLUS_MINUS, _TIMES):
        parts = split_outside(text, signs)
        if len(parts) > 1:
            values = [arithmetic(part, depth + 1) for part in parts]
            return _joined(values, [sign.strip() for sign in separators_outside(text, signs)])
    return None


def _joined(values: list[Fraction | None], signs: list[str]) -> Fraction | None:
    total = values[0]
    for value, sign in zip(values[1:], signs, strict=True):
        if total is None or value is None or (sign == "/" and not value):
            return None
        if sign in "+-":
            total = total + value if sign == "+" else total - value
        else:
            total = total * value if sign == "*" else total / value
    return total
