"""A number as people write it, read exactly: separators, fractions, mixed numbers, powers of ten, repeating decimals;
and sums and products of plain numbers, as in ``48 + 24 = 72``. Parsed, never evaluated.
"""

from __future__ import annotations

import re
from fractions import Fraction

from grpo_lightning.rewards.grading.braces import closing, separators_outside, split_outside, wrapped

MAX_DIGITS = 100
"""Longer numbers are not read: no answer has them, and converting them takes quadratic time."""
MAX_EXPONENT = 400
"""Of a power; beyond a float's range. ``1e999999999`` would fill the memory."""

_GROUPED = (
    "|".join(rf"(?!0{mark})[0-9]{{1,3}}(?:{mark}[0-9]{{3}})+" for mark in (",", " ", "'", "_"))
    + r"|[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}"
)
_DECIMAL = re.compile(
    rf"(?:(?P<whole>{_GROUPED}|[0-9]+)(?:\.(?P<part>[0-9]*(?:(?<=[0-9]{{3}}) [0-9]{{3}})*))?|\.(?P<only>[0-9]+))"
)
_CONTINENTAL = re.compile(
    r"([0-9]{1,3}(?:\.[0-9]{3})+|[0-9]{1,3}(?: [0-9]{3}){2,}),([0-9]+)|([0-9]{1,3}(?:\.[0-9]{3}){2,})"
)
_POWER = re.compile(r"(.+?)(?:[eE]\s?\^?\{?([-+]?[0-9]{1,3})\}?|\s?[*xX]\s?\{?10\}?\^\{?\s?([-+]?[0-9]{1,3})\s?\}?)")
_SMALL_POWER = re.compile(r"\(?(-?[0-9]{1,4})\)?\^\{\s?([-+]?[0-9]{1,3})\s?\}")
_REPEATING = re.compile(r"([0-9]*)\.([0-9]*)(?:\\(?:overline|bar|dot)\s?\{?([0-9]+)\}?|\(([0-9]+)\))(?:…|\.\.\.)?")
_DOTTED = re.compile(r"([0-9]*)\.([0-9]*)\\dot\s?\{?([0-9])\}?([0-9]*)\\dot\s?\{?([0-9])\}?")
_ELLIPSIS = re.compile(r"([0-9]*)\.([0-9]*?)([0-9]+?)\3+(?:…|\.\.\.)")
_MIXED = re.compile(r"([0-9]+)(?:\s?(\\frac.+)|\s([0-9]+\s?/\s?[0-9]+))")
_OVER = re.compile(r"([^/]+)/([^/]+)")


def literal(text: str, depth: int = 0) -> Fraction | None:
    r"""The value of a text (see ``tidy``) that is one number and nothing else; None for anything else.

    Example:
        >>> [str(literal(text)) for text in (r"-1 1/2", r"1.5*10^{3}", r"0.\overline{3}", "1,234.5", "2x", "5-")]
        ['-3/2', '1500', '1/3', '2469/2', 'None', 'None']
    """
    text = text.strip()
    if not text or depth > 6 or len(text) > 4 * MAX_DIGITS:
        return None
    if text[0] in "+-" and text[1:].strip()[:1] not in ("+", "-", ""):
        if _SMALL_POWER.fullmatch(text) and text[0] == "-":
            text = text[1:]  # -2^2 is -(2^2)
            value = literal(text, depth + 1)
            return None if value is None else -value
        value = literal(text[1:], depth + 1)
        return None if value is None else (-value if text[0] == "-" else value)
    if text[0] == text[-1] == "|" and text.count("|") == 2:
        value = literal(text[1:-1], depth + 1)
        return None if value is None else abs(value)
    inner = wrapped(text)
    if inner is not None and text[0] in "({" and "," not in inner:
        return literal(inner, depth + 1)
    for read in (_decimal, _repeating, _fraction, _power, _quotient):
        value = read(text, depth)
        if value is not None:
            return value
    return None


def _decimal(text: str, depth: int) -> Fraction | None:
    match = _DECIMAL.fullmatch(text)
    if match is None:
        continental = _CONTINENTAL.fullmatch(text)
        if continental is None:
            return None
        whole, part = continental[1] or continental[3], continental[2] or ""
        return _digits(re.sub("[. ]", "", whole), part)
    whole, part = match["whole"] or "", match["only"] or match["part"] or ""
    return _digits(re.sub(r"[, '_]", "", whole), part.replace(" ", ""))


def _digits(whole: str, part: str) -> Fraction | None:
    if len(whole) + len(part) > MAX_DIGITS:
        return None
    return Fraction(int(whole + part or "0"), 10 ** len(part))


def _repeating(text: str, depth: int) -> Fraction | None:
    dotted = _DOTTED.fullmatch(text)
    if dotted is not None:
        whole, fixed, first, middle, last = dotted.groups()
        return _with_period(whole, fixed, first + middle + last)
    match = _REPEATING.fullmatch(text)
    if match is not None:
        return _with_period(match[1], match[2], match[3] or match[4])
    match = _ELLIPSIS.fullmatch(text) if len(text) <= MAX_DIGITS else None
    return _with_period(match[1], match[2], match[3]) if match is not None else None


def _with_period(whole: str, fixed: str, period: str) -> Fraction | None:
    if len(whole) + len(fixed) + len(period) > MAX_DIGITS:
        return None
    start = Fraction(int(whole + fixed or "0"), 10 ** len(fixed))
    return start + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))


def _fraction(text: str, depth: int) -> Fraction | None:
    mixed = _MIXED.fullmatch(text)
    if mixed is not None:
        part = literal(mixed[2] or mixed[3], depth + 1)
        whole = literal(mixed[1], depth + 1)
        return None if part is None or whole is None or not part >= 0 else whole + part
    if not text.startswith("\\frac{"):
        return None
    middle = closing(text, 5)
    if middle is None or not text.startswith("{", middle + 1) or closing(text, middle + 1) != len(text) - 1:
        return None
    return _over(literal(text[6:middle], depth + 1), literal(text[middle + 2 : -1], depth + 1))


def _quotient(text: str, depth: int) -> Fraction | None:
    match = _OVER.fullmatch(text)
    if match is None or "\\" in text:
        return None
    return _over(literal(match[1], depth + 1), literal(match[2], depth + 1))


def _over(top: Fraction | None, bottom: Fraction | None) -> Fraction | None:
    return None if top is None or not bottom else top / bottom


def _power(text: str, depth: int) -> Fraction | None:
    match = _POWER.fullmatch(text)
    if match is not None:
        value, exponent = literal(match[1], depth + 1), int(match[2] or match[3])
        return None if value is None or abs(exponent) > MAX_EXPONENT else value * Fraction(10) ** exponent
    match = _SMALL_POWER.fullmatch(text)
    if match is None:
        return None
    base, exponent = int(match[1]), int(match[2])
    if abs(exponent) > MAX_EXPONENT or (base == 0 and exponent <= 0):
        return None
    return Fraction(base) ** exponent


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
