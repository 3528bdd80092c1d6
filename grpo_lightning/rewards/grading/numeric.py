"""Numbers as people write them, compared exactly. Never ``eval``; ASCII digits, after ``in_ascii``."""

from __future__ import annotations

import re
import unicodedata
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


_ARABIC = {ord("\N{ARABIC DECIMAL SEPARATOR}"): ".", ord("\N{ARABIC THOUSANDS SEPARATOR}"): ","}


@dataclass(frozen=True)
class Margin:
    """By how much two numbers may differ and still be the same.

    Args:
        absolute: Largest difference; None for a millionth, or a hundred-thousandth of the reference where that is less:
            as much as rounding to six decimals may take away, but 1e-7 is not 0.
        relative: A share of the reference, added to it.
    """

    absolute: float | None = None
    relative: float = 0.0

    def allows(self, value: Fraction, reference: Fraction) -> bool:
        """True where ``value`` is near enough to ``reference``; the bounds count."""
        if value == reference:
            return True
        # str(): the decimal that was written, so that 1e-6 is a millionth and bounds are inclusive.
        share = abs(reference) * Fraction(str(self.relative))
        if self.absolute is None:
            return abs(value - reference) <= min(_MILLIONTH, abs(reference) * 10 * _MILLIONTH) + share
        return abs(value - reference) <= Fraction(str(self.absolute)) + share


EXACT = Margin(absolute=0.0)
_MILLIONTH = Fraction(1, 1_000_000)


@dataclass(frozen=True)
class Number:
    """A figure as written."""

    value: Fraction
    """Without its sign: 50 for ``50%``."""
    per: int = 1
    """What the sign divides by: 100 for ``%``, 1000 for ``‰``, 10000 for basis points."""

    def equals(self, reference: Number, margin: Margin = EXACT) -> bool:
        """True where they differ by no more than the margin.

        A percent sign on one side only may be a unit: ``50%`` equals both ``0.5`` and ``50``.
        """
        if self.per > 1 and reference.per > 1:
            return margin.allows(self.value / self.per * reference.per, reference.value)
        own, theirs = self._readings(reference), reference._readings(self)
        return any(margin.allows(a, b) for a in own for b in theirs)

    def _readings(self, other: Number) -> tuple[Fraction, ...]:
        return (self.value, self.value / self.per) if self.per > other.per else (self.value,)


def numbers_in(text: str) -> list[Number]:
    r"""Every number in ``text``, in order.

    Example:
        >>> [str(number.value) for number in numbers_in("-$1,234.50, then 1 1/2 of \\frac{3}{4}")]
        ['-2469/2', '3/2', '3/4']
    """
    numbers = (_read(match) for match in _NUMBER.finditer(_plain(text)))
    return [number for number in numbers if number is not None]


def last_number_span(text: str) -> tuple[int, int] | None:
    """Where the last number stands, sign, currency and percent sign included; None where there is none.

    Example:
        >>> last_number_span("it costs $12."), last_number_span("nothing")
        ((9, 12), None)
    """
    last = None
    for match in _NUMBER.finditer(text.replace("\N{MINUS SIGN}", "-")):
        last = match
    return last.span() if last else None


def in_ascii(text: str) -> str:
    """The text with the digits and number signs of other scripts in ASCII; superscripts are no digits.

    Example:
        >>> in_ascii("२०"), in_ascii("٣٫٥"), in_ascii("x²")
        ('20', '3.5', 'x²')
    """
    return text if text.isascii() else "".join(map(_in_ascii, text.translate(_ARABIC)))


def _in_ascii(char: str) -> str:
    digit = unicodedata.decimal(char, None)
    return char if digit is None else str(digit)


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
    return Number(sign * value, 100 if match["percent"] else 1)
