"""Numbers as people write them, compared exactly. Never ``eval``; ASCII digits only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_NUMBER_CHARS = 100
"""Longer runs of digits are not read: no answer has them, and converting them takes quadratic time."""

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]])[-+])?"  # the minus of "5-3" is not a sign
    r"(?:\\?[$€£¥][ ]?(?P<minus>-)?)?"  # "$-5" as well as "-$5"
    rf"(?:(?:(?P<whole>[0-9]+)[ ]+)?(?P<top>[0-9]+)[ ]?/[ ]?(?P<bottom>[0-9]+)"
    rf"|(?P<decimal>{_DECIMAL})(?:[eE](?P<power>[-+]?[0-9]{{1,2}})(?![0-9]))?)"
    r"(?P<percent>[ ]?\\?%|[ ]percent\b)?"
)
_LATEX_FRACTION = re.compile(r"([0-9])?[ ]?\\[dt]?frac(?:\{([0-9]+)\}\{([0-9]+)\}|([0-9])([0-9]))")


@dataclass(frozen=True)
class Number:
    """A figure as written."""

    value: Fraction
    """Without the percent sign: 50 for ``50%``."""
    percent: bool = False

    def equals(self, reference: Number, tolerance: float = 0.0, relative_tolerance: float = 0.0) -> bool:
        """True where they differ by at most ``tolerance + relative_tolerance * |reference|``.

        A percent sign on one side only may be a unit: ``50%`` equals both ``0.5`` and ``50``.
        """
        own, theirs = self._readings(reference), reference._readings(self)
        return any(_close(a, b, tolerance, relative_tolerance) for a in own for b in theirs)

    def _readings(self, other: Number) -> tuple[Fraction, ...]:
        return (self.value, self.value / 100) if self.percent and not other.percent else (self.value,)


def numbers_in(text: str) -> list[Number]:
    r"""Every number in ``text``, in order.

    Example:
        >>> [str(number.value) for number in numbers_in("-$1,234.50, then 1 1/2 of \\frac{3}{4}")]
        ['-2469/2', '3/2', '3/4']
    """
    numbers = (_read(match) for match in _NUMBER.finditer(_plain(text)))
    return [number for number in numbers if number is not None]


def only_number(text: str) -> Number | None:
    """The number in ``text`` where there is exactly one (``42 apples``); None for none or several (``41 or 42``)."""
    if len(text) > 10 * MAX_NUMBER_CHARS:
        return None
    numbers = [_read(match) for match in _NUMBER.finditer(_plain(text))]
    return numbers[0] if len(numbers) == 1 else None


def last_number_text(text: str) -> str | None:
    """The last number as written, sign, currency and percent sign included."""
    last = None
    for match in _NUMBER.finditer(_plain(text)):
        last = match
    return last.group().strip() if last else None


def _plain(text: str) -> str:
    """Unicode minus as ``-`` and LaTeX fractions of whole numbers as ``a/b``."""
    return _LATEX_FRACTION.sub(_slash, text.replace("\N{MINUS SIGN}", "-").replace("{,}", ","))


def _slash(match: re.Match[str]) -> str:
    whole, top, bottom, short_top, short_bottom = match.groups()
    return (f"{whole} " if whole else "") + f"{top or short_top}/{bottom or short_bottom}"


def _read(match: re.Match[str]) -> Number | None:
    if len(match.group()) > MAX_NUMBER_CHARS:
        return None
    sign = -1 if (match["sign"] == "-") != bool(match["minus"]) else 1
    if match["decimal"]:
        value = Fraction(match["decimal"].replace(",", "")) * Fraction(10) ** int(match["power"] or 0)
    elif int(match["bottom"]) == 0:
        return None
    else:
        value = int(match["whole"] or 0) + Fraction(int(match["top"]), int(match["bottom"]))
    return Number(sign * value, bool(match["percent"]))


def _close(value: Fraction, reference: Fraction, tolerance: float, relative_tolerance: float) -> bool:
    return abs(value - reference) <= Fraction(tolerance) + Fraction(relative_tolerance) * abs(reference)
