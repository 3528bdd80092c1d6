"""Dates and times of day, in the ways people write them."""

from __future__ import annotations

import re
from fractions import Fraction

from grpo_lightning.rewards.grading.number_words import number_in_words

_MONTHS = "january february march april may june july august september october november december".split()
_NAMES = "|".join([*_MONTHS, *(month[:3] for month in _MONTHS), "sept"])
_WEEKDAY = r"(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day,?\s+)?"
_DAY = r"([0-9]{1,2})(?:st|nd|rd|th)?"
_MONTH_FIRST = re.compile(rf"{_WEEKDAY}({_NAMES})\.?\s+{_DAY}(?:,?\s+([0-9]{{4}}))?", re.IGNORECASE)
_DAY_FIRST = re.compile(
    rf"{_WEEKDAY}(?:the\s+)?{_DAY}(?:\s+(?:of\s+)?|-)({_NAMES})\.?(?:(?:,?\s+|-)([0-9]{{4}}))?", re.IGNORECASE
)
_YEAR_FIRST = re.compile(rf"([0-9]{{4}}),?\s+({_NAMES})\.?\s+{_DAY}", re.IGNORECASE)
_CHINESE = re.compile(r"([0-9]{4})\s?年\s?([0-9]{1,2})\s?月\s?([0-9]{1,2})\s?[日号]")
_IN_TEXT = re.compile(
    rf"(?<!\w)(?:(?:{_NAMES})\.?\s{{1,3}}[0-9]{{1,2}}(?:st|nd|rd|th)?,?"
    rf"|[0-9]{{1,2}}(?:st|nd|rd|th)?\s{{1,3}}(?:of\s{{1,3}})?(?:{_NAMES})\.?,?)\s{{1,3}}[0-9]{{4}}(?!\w)",
    re.IGNORECASE,
)
MAX_DATE = 40
"""Characters of a date."""
_MONTH_ONLY = re.compile(rf"(?:in\s+)?({_NAMES})\.?,?\s+(?:of\s+)?([0-9]{{4}})", re.IGNORECASE)
_ISO_MONTH = re.compile(r"([0-9]{4})-([0-9]{2})")
_POINTS = re.compile(r"([0-9]{1,2})\.\s?([0-9]{1,2})\.\s?([0-9]{4})")
_SLASHES = re.compile(r"([0-9]{1,2})([/-])([0-9]{1,2})\2([0-9]{4})")
_ISO = re.compile(r"([0-9]{4})([-/.])(0?[1-9]|1[0-2])\2(0?[1-9]|[12][0-9]|3[01])")
_DAY_OF_MONTH = re.compile(r"([0-9]{1,2})/([0-9]{1,2})")
_TIME = re.compile(
    r"([0-9]{1,2})(?:\s?(?::|\.(?=[0-9]{2}\s?[ap]))\s?|h(?=[0-9]{2}$))([0-9]{2})(?::([0-9]{2}))?\s*([ap])?(?:\.?\s?m\.?)?",
    re.IGNORECASE,
)
_NOON = re.compile(r"(?:12(?::00)?\s)?(noon|midnight)", re.IGNORECASE)
_HOUR = re.compile(r"([0-9]{1,2})\s*(?:([ap])\.?\s?m\.?|o['’]?\s?clock)", re.IGNORECASE)

_BARE_HOUR = re.compile(r"([0-9]{1,2})(?:\s*o['’]?\s?clock)?", re.IGNORECASE)
_IN_WORDS = re.compile(
    r"(?:(?P<half>half past)|(?P<part>.{1,24}?)(?P<minutes> minutes?)? (?P<side>past|after|to|till|before)) (?P<hour>\w+)"
    r"(?: o'?\s?clock)?"
)
_OCLOCK = re.compile(r"(?P<hour>[a-z]+) o['’]?\s?clock", re.IGNORECASE)
_PART_OF_DAY = re.compile(r"(?:at )?(.+?) (?:in the (morning|afternoon|evening)|at (night))", re.IGNORECASE)
_HALF = re.compile(r"(.+?)\s?([ap])\.?\s?m\.?", re.IGNORECASE)


def moment(text: str) -> str | None:
    """A date as ``date 1776-07-04``, a time of day as ``time 15:30``; None for other texts.

    A time without am or pm stays as it is: ``same_moment`` lets it agree with either.

    Example:
        >>> moment("July 4th, 1776"), moment("4 July"), moment("3:30 p.m."), moment("15:30"), moment("3 pm")
        ('date 1776-07-04', 'date ?-07-04', 'time 15:30:00', 'time 15:30:00', 'time 15:00:00')
    """
    if len(text) > MAX_DATE:
        return None
    first, second, iso = _MONTH_FIRST.fullmatch(text), _DAY_FIRST.fullmatch(text), _ISO.fullmatch(text)
    if first is not None:
        return _date(first[3], first[1], first[2])
    if second is not None:
        return _date(second[3], second[2], second[1])
    if iso is not None:
        return f"date {iso[1]}-{int(iso[3]):02}-{int(iso[4]):02}"
    if (third := _YEAR_FIRST.fullmatch(text)) is not None:
        return _date(*third.groups())
    if (month := _MONTH_ONLY.fullmatch(text)) is not None:
        return _date(month[2], month[1], None)
    if (figures := _in_figures(text)) is not None:
        return figures
    if (named := _NOON.fullmatch(text)) is not None:
        return "time 12:00:00" if named[1].lower() == "noon" else "time 0:00:00"
    if (said := _said(text)) is not None:
        return said
    time, hour = _TIME.fullmatch(text), _HOUR.fullmatch(text)
    if time is not None:
        return _time(int(time[1]), int(time[2]), int(time[3] or 0), (time[4] or "").lower())
    return _time(int(hour[1]), 0, 0, (hour[2] or "").lower()) if hour is not None else None


def date_at(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Where the date begins and ends whose last number stands from ``start`` to ``end``: day, month and year.

    Example:
        >>> text = "It was on March 5, 2024."
        >>> date_at(text, 19, 23), date_at("It was in 2024.", 10, 14)
        ((10, 23), None)
    """
    dates = _IN_TEXT.finditer(text, max(0, start - MAX_DATE), end + MAX_DATE)
    return next((date.span() for date in dates if date.start() <= start and end <= date.end()), None)


def same_moment(one: str, other: str) -> bool:
    """True where two results of ``moment`` agree; a time of the first half of the day may leave out which half.

    Example:
        >>> same_moment("time 15:30:00", "time 3:30:00 ?"), same_moment("time 3:30:00", "time 15:30:00")
        (True, False)
    """
    if one == other:
        return True
    for known, open_half in ((one, other), (other, one)):
        if known.startswith("time") and open_half.endswith("?") and not known.endswith("?"):
            hours, rest = open_half[5:-2].split(":", 1)
            return known[5:] in (f"{int(hours) % 12}:{rest}", f"{int(hours) % 12 + 12}:{rest}")
    return False


def _said(text: str, half: str = "") -> str | None:
    """``half past two``, ``ten minutes to two``, ``a quarter past 2``, ``three o'clock``, ``2:30 in the afternoon``.

    Example:
        >>> _said("half past two"), _said("quarter to 3 pm"), _said("ten to"), _said("5 to 2")
        ('time 2:30:00 ?', 'time 14:45:00', None, None)
    """
    named = _PART_OF_DAY.fullmatch(text) if not half else None
    if named is not None:
        half = (named[2] or named[3]).lower()
        clock = _TIME.fullmatch(named[1]) or _BARE_HOUR.fullmatch(named[1])
        hour = clock and int(clock[1])
        if clock is not None and hour is not None and 1 <= hour <= 12 and not (clock.re is _TIME and clock[4]):
            minutes = clock[2] if clock.re is _TIME else None
            return _time(hour, int(minutes or 0), 0, _half_named(half, hour))
        return _said(named[1], _half_named(half, _figure(named[1].split()[0])))
    if not half and (marked := _HALF.fullmatch(text)) is not None and " " in marked[1]:
        return _said(marked[1], marked[2].lower())
    match = _IN_WORDS.fullmatch(text.lower())
    hour = _figure((match or _OCLOCK.fullmatch(text) or {"hour": ""})["hour"])
    if hour is None or not 1 <= hour <= 12:
        return None
    if match is None or match["half"]:
        return _time(hour, 30 if match else 0, 0, half)
    part = match["part"].removeprefix("a ")
    minutes = 15 if part == "quarter" else _figure(part)
    if minutes is None or not 0 < minutes < 60:
        return None
    if match["side"] == "to" and not match["minutes"] and (part.isdigit() or minutes % 5):
        return None  # 3 to 4, three to four: a ratio, or a span
    if match["side"] in ("past", "after"):
        return _time(hour, minutes, 0, half)
    return _time(hour - 1 or 12, 60 - minutes, 0, half)


def _half_named(part: str, hour: int | None) -> str:
    """``a`` or ``p`` of an hour in a part of the day: a night has both."""
    if part == "night":
        return "a" if hour in (12, 1, 2, 3, 4, 5) else "p"
    return "a" if part == "morning" else "p"


def is_same_hour(time: str, number: Fraction) -> bool:
    """True for a full hour and its number, which may leave out the half of the day.

    Example:
        >>> is_same_hour("time 15:00:00", Fraction(3)), is_same_hour("time 15:30:00", Fraction(3))
        (True, False)
    """
    hour, _, rest = time.removeprefix("time ").removesuffix(" ?").partition(":")
    return rest == "00:00" and 0 < number <= 24 and int(hour) % 12 == number % 12


def is_same_day(date: str, figures: str) -> bool:
    """True for a day of any year and its figures, the month first, and for eight digits.

    Example:
        >>> is_same_day("date ?-12-25", "12/25"), is_same_day("date ?-12-25", "25/12"), is_same_day("date ?-12-25", "0.48")
        (True, False, False)
        >>> is_same_day("date 2024-12-25", "20241225")
        True
    """
    if len(figures) == 8 and figures.isdigit():
        return date == f"date {figures[:4]}-{figures[4:6]}-{figures[6:]}"
    day = _DAY_OF_MONTH.fullmatch(figures)
    return day is not None and date == f"date ?-{int(day[1]):02}-{int(day[2]):02}"


def is_year_of(figures: str, date: str) -> bool:
    """True for four digits and a date of that year: who says the day as well has said the year.

    Example:
        >>> is_year_of("1776", "date 1776-07-04"), is_year_of("1776", "date ?-07-04"), is_year_of("1777", "date 1776-07-04")
        (True, False, False)
    """
    return len(figures) == 4 and figures.isdigit() and date.startswith(f"date {figures}-")


def _figure(said: str) -> int | None:
    if said.isascii() and said.isdigit():
        return int(said[:3])
    found = number_in_words(said)
    return None if found is None or found[1] or found[0].denominator > 1 else int(found[0])


def _in_figures(text: str) -> str | None:
    """``5.3.2024`` is the fifth of March; ``12/25/2024`` and ``25-12-2024`` can be one day only, ``3/5/2024`` two."""
    points, slashes, month = _POINTS.fullmatch(text), _SLASHES.fullmatch(text), _ISO_MONTH.fullmatch(text)
    if month is not None and 1 <= int(month[2]) <= 12 and int(month[1]) >= 1000:
        return f"date {month[1]}-{month[2]}-?"
    if points is not None and int(points[2]) <= 12 and int(points[1]) <= 31:
        return f"date {points[3]}-{int(points[2]):02}-{int(points[1]):02}"
    if (chinese := _CHINESE.fullmatch(text)) is not None and 1 <= int(chinese[2]) <= 12:
        return f"date {chinese[1]}-{int(chinese[2]):02}-{int(chinese[3]):02}"
    if slashes is None:
        return None
    small, large = sorted((int(slashes[1]), int(slashes[3])))
    if not 1 <= small <= 12 or large > 31 or small != large <= 12:
        return None
    return f"date {slashes[4]}-{small:02}-{large:02}"


def _date(year: str | None, month: str, day: str | None) -> str:
    number = next(place for place, name in enumerate(_MONTHS, 1) if month.lower()[:3] == name[:3])
    return f"date {year or '?'}-{number:02}-{'?' if day is None else f'{int(day):02}'}"


def _time(hours: int, minutes: int, seconds: int, half: str) -> str | None:
    if hours > 24 or minutes > 59 or seconds > 59:
        return None
    hours = hours % 24
    if half:
        hours = hours % 12 + (12 if half == "p" else 0)
    mark = " ?" if not half and 1 <= hours <= 12 else ""
    return f"time {hours}:{minutes:02}:{seconds:02}{mark}"
