"""Amounts in several units: ``5 ft 3 in``, ``6'2"``, ``2 hours and 30 minutes``, ``1 dollar and 25 cents``."""

from __future__ import annotations

import re
from fractions import Fraction

from grpo_lightning.rewards.grading.literals import literal
from grpo_lightning.rewards.grading.measures import measure, readings
from grpo_lightning.rewards.grading.numeric import Number
from grpo_lightning.rewards.grading.quantity_forms import Quantity, sizes_beside

_FEET = re.compile(r"([0-9]{1,4})\s?'\s?([0-9]{1,3}(?:\.[0-9]+|\s[0-9]/[0-9])?)\s?(?:\"|'')")
_PIECE = re.compile(r"([0-9][0-9.,]*)\s?([A-Za-z]+)\.?")


def compound_amount(text: str) -> Quantity | None:
    """``5 ft 3 in`` and ``2 hours and 30 minutes``, in the smallest unit; no unit occurs twice."""
    pieces = _PIECE.findall(text)
    if len(pieces) < 2 or _PIECE.sub("", text).replace("and", "").strip(" ,"):
        return None
    parts: list[Quantity] = []
    for digits, name in pieces:
        name = "min" if name == "m" and parts and parts[0].dimension == (("time", 1),) else name
        value, known = literal(digits.rstrip(",.")), measure(name)
        if value is None or known is None or known[1] is None:
            return None
        parts.append(Quantity(Number(value), *known))
    parts.sort(key=lambda part: -part.size)
    last, first = parts[-1], parts[0]
    sizes = [sizes_beside(part, last) for part in parts]
    if last.dimension is None or first.dimension is None or len({part.size for part in parts}) < len(parts):
        return None
    if not all(sizes):
        return None
    total = sum((part.number.value * size[0][0] for part, size in zip(parts, sizes, strict=True) if size), Fraction(0))
    larger, dimension = readings(first.size, first.dimension, last.dimension)[0]
    return Quantity(Number(total / last.size), last.size, dimension, larger=larger)


def feet_and_inches(text: str) -> Quantity | None:
    """The height that ``6'2"`` is, in inches; None for other texts."""
    match = _FEET.fullmatch(text)
    inches, known = literal(match[2]) if match else None, measure("inch")
    if match is None or inches is None or known is None:
        return None
    return Quantity(Number(12 * int(match[1]) + inches), *known)
