"""What stands left of ``=`` or ``>``: letters, segments, angles, functions, words; and when two of them name one thing."""

from __future__ import annotations

import re

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
    return sorts[0] == "points" and sorted(_FRAME.sub("", one)) == sorted(_FRAME.sub("", other))


def is_call(text: str) -> bool:
    """True for ``f(x)`` and ``|x|``."""
    return _CALL.fullmatch(text) is not None


def _sort(name: str) -> str:
    for sort, pattern in (("angle", _ANGLE), ("points", _POINTS), ("call", _CALL), ("words", _WORDS)):
        if pattern.fullmatch(re.sub(r"[\s{}]", "", _FRAME.sub("", name)) if sort == "points" else name):
            return sort
    return "letter"


def _is_value_of(call: str, name: str) -> bool:
    """``f(x)`` for ``y``, or for ``f`` alone."""
    return is_call(call) and (name == "y" or name == call.partition("(")[0])
