"""Angles in degrees where mathematics counts in radians."""

from __future__ import annotations

import re

_FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])(?!\s*\^\s*\{?\s*-)")
_DEGREES = re.compile(r"(?P<angle>[0-9]+(?:\.[0-9]+)?|(?<![A-Za-z\\])[a-zα-ω])\s?(?:°|deg(?:rees?)?\b)(?!\s?[CF]\b)")
_ANGLE = re.compile(r"(?P<angle>-?[0-9]+(?:\.[0-9]+)?)\s?(?:°|deg(?:rees?)?)", re.IGNORECASE)
_RADIANS = re.compile(r"π|\\arc(?:sin|cos|tan)|\\(?:sin|cos|tan)\s?\^\s?\{\s?-1\s?\}|\brad(?:ians?)?\b")


def with_radians(text: str) -> str:
    r"""The text with the degrees in its trigonometric functions as radians: a parser drops the sign.

    Example:
        >>> with_radians(r"\tan 45°"), with_radians("45°"), with_radians(r"2\sin(x + 30°)")
        ('\\tan (\\frac{45π}{180})', '45°', '2\\sin(x + (\\frac{30π}{180}))')
    """
    if _FUNCTION.search(text) is None:
        return text
    return _DEGREES.sub(lambda match: rf"(\frac{{{match['angle']}π}}{{180}})", text)


def degrees_as_radians(text: str) -> str | None:
    r"""An angle in degrees as a formula; None for anything else.

    Example:
        >>> degrees_as_radians("60°"), degrees_as_radians("60")
        ('\\frac{60π}{180}', None)
    """
    match = _ANGLE.fullmatch(text)
    return None if match is None else rf"\frac{{{match['angle']}π}}{{180}}"


def is_in_radians(text: str) -> bool:
    r"""True for formulas that can only be angles in radians beside an angle in degrees: ``\frac{π}{3}``, ``\arctan 1``."""
    return _RADIANS.search(text) is not None
