"""Ratios, and digits in a base: numbers whose notation says how they are read."""

from __future__ import annotations

import re
from fractions import Fraction

from grpo_lightning.rewards.grading.forms import Value
from grpo_lightning.rewards.grading.literals import literal
from grpo_lightning.rewards.grading.number_words import number_said

_BASE = re.compile(r"([0-9A-Fa-f]+)_\{?\s?(\w+)\s?\}?")
_BINARY = re.compile("[01]{3,40}")
MAX_DIGITS = 300
"""Of a number in a base; one with more is no number."""
_BASES = {"two": "2", "three": "3", "eight": "8", "ten": "10", "sixteen": "16", "bin": "2", "hex": "16"}
_SCORE = re.compile(r"([0-9]+)\s?-\s?([0-9]+)(?: ([A-Za-z]+))?")
_TO = re.compile(r"(?:from )?([0-9]+)\s?(?::|\bto\b)\s?([0-9]+)(?: ([A-Za-z]+))?")
_SHORT_YEARS = re.compile(r"([0-9]{2})([0-9]{2})-([0-9]{2})")
_WORDED = re.compile(
    r"[a-z0-9]+(?:[ -](?!to\b)[a-z0-9]+){0,3}(?:[ -]to[ -][a-z0-9]+(?:[ -](?!to\b)[a-z0-9]+){0,3})+", re.IGNORECASE
)
_RATIO = re.compile(r"[0-9.]+(?:\s?(?::|\bto\b)\s?[0-9.]+)+")


def same_ratio(reference: Value, answer: Value) -> bool | None:
    """``3:4`` and ``6 to 8``, or ``3/4``; None where neither is a ratio."""
    one, other = _ratio(reference), _ratio(answer)
    if one is None or other is None or (reference.quantity is not None and answer.quantity is not None):
        return None
    return len(one) == len(other) and all(a * other[0] == b * one[0] for a, b in zip(one, other, strict=True))


def same_score(reference: Value, answer: Value) -> bool | None:
    """The reference ``17-14`` and ``17 to 14`` or ``17:14``; None where it is none, but the difference ``17 - 14``.

    A score, or a span of years, is not worked out: ``20-17`` is another one. ``10 - 20`` is one too: nobody leaves a
    difference below zero to be worked out.
    """
    wanted = _SCORE.fullmatch(reference.text)
    if wanted is None:
        return None
    text = answer.text.removeprefix("time ").removesuffix(" ?").removesuffix(":00")
    text = _SHORT_YEARS.sub(r"\1\2-\1\3", text) if _SHORT_YEARS.fullmatch(text) else text
    given = _SCORE.fullmatch(text) or _TO.fullmatch(text)
    if given is not None and given.groups()[:2] == wanted.groups()[:2]:
        return given[3] is None or wanted[3] is None or given[3] == wanted[3]
    return False if " " not in reference.text or int(wanted[1][:9]) < int(wanted[2][:9]) else None


def same_digits(reference: Value, answer: Value) -> bool | None:
    """Two numbers in one base, which the answer may leave out; None where neither names a base.

    Where only the answer names one, the reference is its value: ``42_8`` is 34. Three digits and more of a binary number
    are no coincidence, though.
    """
    one, other = _BASE.fullmatch(reference.text), _BASE.fullmatch(answer.text)
    if one is None and other is None:
        return None
    if one is None and other is not None and reference.quantity is not None:
        base = _BASES.get(other[2], other[2])
        is_binary = base == "2" and _BINARY.fullmatch(reference.text) is not None
        if not is_binary:
            return _in_base(other[1], base) == reference.quantity.number.value
    digits = [match[1] if match else value.text for match, value in ((one, reference), (other, answer))]
    bases = {_BASES.get(match[2], match[2]) for match in (one, other) if match}
    return len(bases) == 1 and digits[0].upper().lstrip("0") == digits[1].upper().lstrip("0")


def _in_base(digits: str, base: str) -> int | None:
    if len(digits) > MAX_DIGITS or not re.fullmatch("[2-9]|1[0-6]", base):
        return None
    try:
        return int(digits, int(base))
    except ValueError:  # a digit that the base does not have
        return None


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
    parts: list[Fraction | None] = [None]
    if _RATIO.fullmatch(text):
        parts = [literal(part) for part in re.split(r":|\bto\b", text)]
    elif _WORDED.fullmatch(text):
        parts = [number_said(part) for part in re.split(r"[ -]to[ -]", text.lower())]
    found = [part for part in parts if part is not None]
    return found if len(found) == len(parts) and all(found) else None
