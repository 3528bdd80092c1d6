"""Amounts in two parts, as they are said: rewritten as one figure before they are read; and in several units: ``5 ft 3 in``,
``6'2"``, ``2 hours and 30 minutes``, ``1 dollar and 25 cents``.
"""

from __future__ import annotations

import re
from fractions import Fraction

from grpo_lightning.rewards.grading.literals import literal
from grpo_lightning.rewards.grading.measures import Quantity, measure, readings, sizes_beside
from grpo_lightning.rewards.grading.number_words import number_said, part_named
from grpo_lightning.rewards.grading.numeric import Number

_PART = r"(?:a|one|two|three)\s(?:half|halves|third|quarter|fourth|fifth|eighth)s?"
_UNIT_AND_PART = re.compile(rf"(?P<count>[0-9]+|[a-z-]+) (?P<unit>[a-z]+) and (?P<part>{_PART})")
_COUNT_AND_PART = re.compile(rf"(?P<count>[0-9]+) and (?P<part>{_PART})(?: of an?)?(?: (?P<unit>[a-z]+))?")
_PART_OF_UNIT = re.compile(rf"(?P<part>{_PART}|half) (?:of )?an? (?P<unit>[a-z]+)", re.IGNORECASE)
_TWO_UNITS = re.compile(r"([0-9]+|[a-z][a-z -]*?) ([a-z]+)(?:,| and|, and) ([0-9]+|[a-z][a-z -]*?) ([a-z]+)")
_PARTS = re.compile(r"([0-9]{1,4})[ -]([a-z]+s|(?<=^1[ -])[a-z]+)", re.IGNORECASE)
_PLACES = "first second third fourth fifth sixth seventh eighth ninth".split()
_ORDINAL = re.compile(rf"([a-z]+ty)[ -]({'|'.join(_PLACES)})", re.IGNORECASE)
_EURO_CENTS = re.compile(r"\beuro[ -]cents?\b", re.IGNORECASE)
_SIGN_AND_CENTS = re.compile(r"^([$€])([0-9]+) and ([0-9]+ cents?)$")
_ARC = re.compile(r"([0-9]{1,3})\s?°\s?([0-9]{1,2})\s?'(?:\s?([0-9]{1,2}(?:\.[0-9]+)?)\s?(?:\"|''))?")


def in_figures(text: str) -> str:
    """``an hour and a half``, ``7 and a half``, ``one dollar and five cents`` and ``45° 30'`` in figures; others as they are.

    Example:
        >>> in_figures("an hour and a half"), in_figures("7 and a half"), in_figures("45° 30'"), in_figures("one cat")
        ('3/2 hour', '15/2', '91/2°', 'one cat')
        >>> in_figures("one dollar and twenty-five cents")
        '1 dollar and 25 cents'
        >>> in_figures("2 thirds"), in_figures("twenty-first"), in_figures("2 quarters")
        ('2/3', '21th', '2 quarters')
    """
    text = _SIGN_AND_CENTS.sub(_as_words, _EURO_CENTS.sub("eurocents", text))
    arc = _ARC.fullmatch(text)
    if arc is not None:
        degrees, minutes, seconds = (Fraction(part or 0) for part in arc.groups())
        return f"{degrees + minutes / 60 + seconds / 3600}°" if max(minutes, seconds) < 60 else text
    if (parts := _PARTS.fullmatch(text)) is not None:
        named = parts[2].lower()
        size = part_named(named, int(parts[1])) if named != "quarters" else None  # a quarter is a coin too
        return text if size is None else f"{parts[1]}/{size}"
    if (share := _PART_OF_UNIT.fullmatch(text)) is not None:
        part = _amount(share["part"].lower())
        return text if part is None or measure(share["unit"]) is None else f"{part} {share['unit']}"
    if (ordinal := _ORDINAL.fullmatch(text)) is not None:
        tens = _amount(ordinal[1].lower())
        return text if tens is None else f"{tens + 1 + _PLACES.index(ordinal[2].lower())}th"
    if (" and " not in text and ", " not in text) or len(text) > 80:
        return text
    said = text.lower()
    for pattern in (_COUNT_AND_PART, _UNIT_AND_PART):
        match = pattern.fullmatch(said)
        if match is not None:
            count, part, unit = _amount(match["count"]), _amount(match["part"]), match["unit"]
            if count is not None and part is not None and part < 1 and not (unit and measure(unit) is None):
                return f"{count + part} {unit or ''}".strip()
    several = _TWO_UNITS.fullmatch(said)
    if several is None:
        return text
    first, second = _amount(several[1]), _amount(several[3])
    if first is None or second is None or measure(several[2]) is None or measure(several[4]) is None:
        return text
    return f"{first} {several[2]} and {second} {several[4]}"


def _amount(said: str) -> Fraction | None:
    return Fraction(1) if said in ("a", "an") else number_said(said)


def _as_words(money: re.Match[str]) -> str:
    return f"{money[2]} {'dollars' if money[1] == '$' else 'euros'} and {money[3]}"


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
