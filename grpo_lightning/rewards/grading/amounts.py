"""A number in a sentence with the words behind it that change it: ``5 million``, ``50 cents``, ``7 and a half``."""

from __future__ import annotations

import re

from grpo_lightning.rewards.grading.measures import CURRENCIES, measure
from grpo_lightning.rewards.grading.number_words import SCALES
from grpo_lightning.rewards.grading.quantities import quantity
from grpo_lightning.rewards.grading.symbols import MONEY

_HALF_OF_DAY = re.compile(r"\s+[ap](?:\.\s?m\b\.?|m\b)", re.IGNORECASE)
_CLOCK = re.compile(
    r"\s?(?:[ap]\.\s?m\b\.?|[ap]m\b|o['’]?\s?clock)(?:\s+(?:in the (?:morning|afternoon|evening)|at night))?"
    r"|\s+(?:in the (?:morning|afternoon|evening)|at night)\b",
    re.IGNORECASE,
)
_PIECE_BEFORE = re.compile(r"(?<![\w.,$])(?:[0-9][0-9.,]*\s?[A-Za-z]+\.?,?\s+(?:and\s+)?|[$€][0-9]+\s+and\s+)$")
_PART = re.compile(r"\s+and\s+(?:a|one|two|three)\s+(?:half|third|quarter|fourth|fifth|eighth)s?\b(?!\s+of\b)")
_SHARE = re.compile(r"\s+(?:halves|(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth)s)\b")
_SCALES = "|".join(SCALES.keys() - {"dozen"})  # 4 dozen eggs are 4 or 48
_SCALE = re.compile(rf"\s+(?:{_SCALES})s?(?![\w-])", re.IGNORECASE)
_UNIT = re.compile(r"\s+(?:(?:square|cubic)\s+)?([A-Za-zμΩ°¢]++)(?:\^[23]|[²³])?(?![\w^-])")
_CHAIN = re.compile(r"(?:\s?[·*/]\s?[A-Za-zμΩ]+[²³⁴]?)+(?![\w^])")
_RATE = re.compile(r"(\s+per\s+|/|\s+(?:an?|each|every)\s+)([A-Za-z]+)")


def end_of_amount(line: str, start: int, end: int) -> int:
    """Where the amount ends whose number, or time of day, stands at ``start`` and ends at ``end``.

    A noun that is no unit of measure is left out, and so is a unit of which the line may mean a rate
    (``540 meters a week``): the number then stands for any unit.

    Example:
        >>> [line[: end_of_amount(line, 0, 1)] for line in ("5 million cars", "5 km away", "7 and a half", "4 dozen eggs")]
        ['5 million', '5 km', '7 and a half', '4']
    """
    if (clock := end_of_time(line, start, end)) is not None:
        return clock
    if (share := _SHARE.match(line, end)) is not None:
        return share.end()
    part = _PART.match(line, end)
    end = end if part is None else part.end()
    while (scale := _SCALE.match(line, end)) is not None:
        end = scale.end()
    return end if line[start] in MONEY else _end_of_unit(line, end)


def end_of_time(line: str, start: int, end: int) -> int | None:
    """Where a time of day ends whose figures stand at ``start``: behind ``PM``, ``o'clock`` and the like; None for no time.

    Example:
        >>> end_of_time("3 PM today", 0, 1), end_of_time("3 apples", 0, 1)
        (4, None)
    """
    if ":" in line[start:end]:
        half = _HALF_OF_DAY.match(line, end)
        return end if half is None else half.end()
    clock = _CLOCK.match(line, end)
    return clock.end() if clock is not None and line[start:end].isdigit() and int(line[start:end][:3]) <= 24 else None


def whole_compound(line: str, start: int, end: int) -> tuple[int, int]:
    """Where the amount in several units begins and ends whose last part stands at ``start``: ``5 ft 6 in``.

    Example:
        >>> whole_compound("1 h and 25 mins", 8, 15), whole_compound("2 m and 25 cats", 8, 15)
        ((0, 15), (8, 15))
    """
    while (piece := _PIECE_BEFORE.search(line, 0, start)) is not None:
        ends = [end, *([end + 3] if re.match(r" in\b", line[end:]) else [])]
        kept = next((stop for stop in ends if _is_compound(line[piece.start() : stop])), None)
        if kept is None:
            break
        start, end = piece.start(), kept
    return start, end


def _is_compound(text: str) -> bool:
    found = quantity(text.strip())
    return found is not None and found.larger is not None


def _end_of_unit(line: str, end: int) -> int:
    unit = _UNIT.match(line, end)
    known = measure(unit[1]) if unit is not None and unit[1] != "in" else None
    if unit is None or known is None:
        return end
    chain = _CHAIN.match(line, unit.end())
    if chain is not None and re.search("[·*²³⁴]", chain[0]) and all(map(measure, re.findall("[A-Za-zμΩ]+", chain[0]))):
        return chain.end()
    rate = _RATE.match(line, unit.end())
    if rate is None or (rate[1] != "/" and measure(rate[2]) is None):
        return unit.end()
    is_money = any(base in CURRENCIES for base, _ in known[1] or ())
    return rate.end() if rate[1].strip() in ("per", "/") and measure(rate[2]) is not None and not is_money else end
