"""Ratios, and digits in a base: numbers whose notation says how they are read."""

from __future__ import annotations

import re
from fractions import Fraction

from grpo_lightning.rewards.grading.literals import literal
from grpo_lightning.rewards.grading.shapes import Value

_BASE = re.compile(r"([0-9A-Fa-f]+)_\{?\s?(\w+)\s?\}?")
_BASES = {"two": "2", "three": "3", "eight": "8", "ten": "10", "sixteen": "16", "bin": "2", "hex": "16"}
_SCORE = re.compile(r"([0-9]+)\s?-\s?([0-9]+)")
_TO = re.compile(r"([0-9]+)\s?(?::|\bto\b)\s?([0-9]+)")
_RATIO = re.compile(r"[0-9.]+(?:\s?(?::|\bto\b)\s?[0-9.]+)+")


def same_ratio(reference: Value, answer: Value) -> bool | None:
    """``3:4`` and ``6 to 8``, or ``3/4``; None where neither is a ratio."""
    one, other = _ratio(reference), _ratio(answer)
    if one is None or other is None or (reference.quantity is not None and answer.quantity is not None):
        return None
    return len(one) == len(other) and all(a * other[0] == b * one[0] for a, b in zip(one, other, strict=True))


def same_score(reference: Value, answer: Value) -> bool | None:
    """The reference ``17-14`` and ``17 to 14`` or ``17:14``; None where they are not, and it may be a difference.

    ``10-20`` is none: nobody leaves one below zero to be worked out.
    """
    wanted = _SCORE.fullmatch(reference.text)
    if wanted is None:
        return None
    text = answer.text.removeprefix("time ").removesuffix(" ?").removesuffix(":00")
    given = _SCORE.fullmatch(text) or _TO.fullmatch(text)
    if given is not None and given.groups() == wanted.groups():
        return True
    return False if int(wanted[1][:9]) < int(wanted[2][:9]) else None


def same_digits(reference: Value, answer: Value) -> bool | None:
    """Two numbers in one base, which one of them may leave out; None where neither names a base."""
    one, other = _BASE.fullmatch(reference.text), _BASE.fullmatch(answer.text)
    if one is None and other is None:
        return None
    digits = [match[1] if match else value.text for match, value in ((one, reference), (other, answer))]
    bases = {_BASES.get(match[2], match[2]) for match in (one, other) if match}
    return len(bases) == 1 and digits[0].upper().lstrip("0") == digits[1].upper().lstrip("0")


def is_ratio_or_digits(text: str) -> bool:
    """True for what the two functions read without a parser of formulas."""
    return any(kind.fullmatch(text) is not None for kind in (_BASE, _RATIO, _SCORE))


def _ratio(value: Value) -> list[Fraction] | None:
    if value.quantity is not None:
        number = value.quantity.number.value
        return [Fraction(number.numerator), Fraction(number.denominator)]
    text = value.text
    if text.startswith("time "):  # 4:15 may be a ratio too
        text = text.removeprefix("time ").removesuffix(" ?").removesuffix(":00")
    parts = [literal(part) for part in re.split(r":|\bto\b", text)] if _RATIO.fullmatch(text) else [None]
    found = [part for part in parts if part is not None]
    return found if len(found) == len(parts) and all(found) else None
