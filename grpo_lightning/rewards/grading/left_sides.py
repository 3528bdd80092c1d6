"""What stands left of ``=`` or ``>``: letters, segments, angles, functions, words; and when two of them name one thing."""

from __future__ import annotations

import re

_BRACKETS = r"[(\[](?=[^()\[\]]{0,80}?(?:[A-Z<>=≤≥|{]|[a-z]{3}))(?:[^()\[\]]|\([^()\[\]]{1,40}\)){1,80}[)\]]"
"""Around an event or random variable: P(2) may be a polynomial's value."""
_CHANCE = rf"\\?(?:Pr(?:ob)?|P|E|Var|Cov|SD|mathbb\s?\{{?\s?[PE]\s?\}}?)\s?{_BRACKETS}"
_DERIVATIVE = r"\\frac\{\s?d\s?[a-z]\s?\}\{\s?d\s?[a-z]\s?\}|d[a-z]\s?/\s?d[a-z]"
NAME = re.compile(
    r"(?:\\?[A-Za-zα-ωΑ-Ω]|\\[a-z]+|[A-Za-z]{2,}(?: [A-Za-z]+)*)(?:_\{?\s?\w+\s?\}?)?'*(?:(?:\^\{-1\})?\s?\(\s?[a-zα-ω](?:\s?,\s?[a-z])*\s?\))?"
    r"|(?:\\angle|∠|m)\s?(?:\\angle|∠)?\s?[A-Z]{1,3}|[A-Z]{2}|(?:\\triangle|△|\\overline|\\vec)\s?\{?\s?[A-Z]{1,4}\s?\}?|\[[A-Z]{3,4}\]|\(\s?[a-z]\s?(?:,\s?[a-z]\s?)+\)|\|[A-Z]{2}\||\?"
    rf"|{_CHANCE}|{_DERIVATIVE}"
)
"""Of a value: a letter, a word, a segment, an angle, a function of letters, a probability or mean, a derivative."""
_TERM = re.compile(
    r"\\frac\{\s?d\s?\}\{\s?d\s?[a-z]\s?\}.{1,300}|\\(?:sum|prod|o?int|lim|binom)(?![a-z]).{1,300}|[0-9a-z]{1,9}!|(?:\\sigma|\\chi|[Rrs])\^\{2\}",
    re.DOTALL,
)
_SQUEEZED_DERIVATIVE = re.compile(r"(?:\\frac)?d([a-z])/?d[a-z]")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_ROUND = str.maketrans("[]", "()")
_CALL = re.compile(r"\\?[A-Za-z]+'*(?:\^\{?-1\}?)?\s?\(.+\)|\|.+\|")
_ANGLE = re.compile(r"m?\s?(?:\\angle|∠)\s?(?:\\angle|∠)?\s?([A-Z]{1,3})")
_FRAME = re.compile(r"\\overline|\\triangle|△|\\vec|[|\[\]]")
_POINTS = re.compile(r"[A-Z]{2,4}")
_WORDS = re.compile(r"(?!\\)(?=.*[a-z])[A-Za-z]{2,}(?: [A-Za-z]+)*")
_GENERAL = frozenset("answer ans result total value solution number sum final output count amount".split())


def may_name_one(reference: str, answer: str) -> bool:
    """True where two left sides may name the same thing; two of one sort must be the same.

    Example:
        >>> may_name_one("AB", "BA"), may_name_one("AB", "BC"), may_name_one("Area", "A"), may_name_one("x", "y")
        (True, False, True, False)
        >>> may_name_one("f(x)", "y"), may_name_one("f(x)", "g(x)"), may_name_one("Area", "Perimeter")
        (True, False, False)
    """
    one, other = (re.sub(r"[\s{}]", "", name) for name in (reference, answer))
    if not one or not other or one == other:
        return True
    sorts = _sort(reference), _sort(answer)
    if sorts == ("chance", "chance"):
        return _event(one) == _event(other)
    if sorts[0] != sorts[1]:
        return "call" not in sorts or _is_value_of(one, other) or _is_value_of(other, one)
    if sorts[0] == "words":
        said = [set(name.lower().split()) for name in (reference, answer)]
        return any(words & (said[1 - place] | _GENERAL) for place, words in enumerate(said))
    if sorts[0] == "call":
        return one.partition("(")[0] == other.partition("(")[0]
    angles = _ANGLE.fullmatch(reference), _ANGLE.fullmatch(answer)
    if angles[0] is not None and angles[1] is not None:
        return angles[0][1] in (angles[1][1], angles[1][1][::-1])
    if sorts[0] == "letter":
        return _of_derivative(one) == _of_derivative(other)
    return sorts[0] == "points" and sorted(_FRAME.sub("", one)) == sorted(_FRAME.sub("", other))


def is_call(text: str) -> bool:
    """True for ``f(x)`` and ``|x|``."""
    return _CALL.fullmatch(text) is not None


def denotes_value(text: str) -> bool:
    r"""True for a left side that has the value on its right: ``f(2)``, ``\sqrt{9}``, ``n!``; ``x^2`` has not.

    Example:
        >>> denotes_value("f(2)"), denotes_value("\\log_2 8"), denotes_value("\\sum_{i=1}^{10} i"), denotes_value("x + 1")
        (True, True, True, False)
    """
    is_figures = re.search("[0-9]", text) is not None and re.search(r"[A-Za-z:,]", _COMMAND.sub("", text)) is None
    return is_call(text) or is_figures or _TERM.fullmatch(text) is not None


def _of_derivative(name: str) -> str:
    """``y'`` for ``dy/dx``."""
    return _SQUEEZED_DERIVATIVE.sub(r"\1'", name)


def _event(chance: str) -> str:
    """``P(A|B)``, in one notation."""
    head, bracket, what = re.split(r"([(\[])", chance, maxsplit=1)
    head = head.removeprefix("\\").removeprefix("mathbb")
    return f"{'P' if head.startswith('P') else head}{bracket}{what}".translate(_ROUND)


def _sort(name: str) -> str:
    if re.fullmatch(_CHANCE, name):
        return "chance"
    for sort, pattern in (("angle", _ANGLE), ("points", _POINTS), ("call", _CALL), ("words", _WORDS)):
        if pattern.fullmatch(re.sub(r"[\s{}]", "", _FRAME.sub("", name)) if sort == "points" else name):
            return sort
    return "letter"


def _is_value_of(call: str, name: str) -> bool:
    """``f(x)`` for ``y``, or for ``f`` alone."""
    return is_call(call) and (name == "y" or name == call.partition("(")[0])
