"""Relations in words: ``at least 5``, ``x is greater than 2``, ``10 or more``, ``different from 7``."""

from __future__ import annotations

import re

from grpo_lightning.rewards.grading.literals import literal
from grpo_lightning.rewards.grading.number_words import number_in_words

_WORDS = {
    "≥": "at least|no less than|no fewer than|not less than|(?:greater|more|larger) than or equal to|a minimum of",
    "≤": "at most|no (?:more|greater) than|not (?:more|greater) than|(?:less|smaller|fewer) than or equal to|up to|a maximum of|not exceeding",
    ">": "greater than|more than|larger than|bigger than|higher than|above|over|exceeding|exceeds",
    "<": "less than|fewer than|smaller than|lower than|below|under",
    "≠": "different from|other than|not equal to|unequal to|distinct from|anything but|anything except|except(?: for)?|excluding|not",
}
_BEFORE = re.compile(
    r"(?:(?:(?P<name>[a-z])|all (?:real )?(?:numbers|reals|values)|any (?:real )?number|(?:real )?numbers|it)(?= )(?: [a-z])? )?"
    r"(?:that )?(?:(?:is|are|must be|has to be|can be|should be) )?"
    rf"(?:strictly )?(?:{'|'.join(f'(?P<r{place}>{words})' for place, words in enumerate(_WORDS.values()))}) (?P<bound>.+)",
    re.IGNORECASE,
)
_BEHIND = re.compile(
    r"(?P<bound>.+?)(?:,)? (?:or|and) (?:(?P<up>more|greater|above|higher|larger|over|up|older)|less|fewer|below|lower|smaller|under|younger)"
    r"(?P<noun> [a-z]+)?",
    re.IGNORECASE,
)


_BETWEEN = re.compile(r"(?:[a-z] is |[a-z] lies |all numbers )?between (\S+) and (\S+)", re.IGNORECASE)


def in_signs(text: str) -> str:
    """A relation in words with its sign; any other text as it is.

    Example:
        >>> in_signs("x is greater than 2"), in_signs("at least 5"), in_signs("10 or more"), in_signs("more apples")
        ('x > 2', '≥ 5', '≥ 10', 'more apples')
    """
    if len(text) > 80 or " " not in text:
        return text
    before = _BEFORE.fullmatch(text)
    if before is not None and _begins_with_number(before["bound"]):
        sign = next(sign for place, sign in enumerate(_WORDS) if before[f"r{place}"])
        return f"{before['name'] or ''} {sign} {_in_figures(before['bound'])}".strip()
    between = _BETWEEN.fullmatch(text)
    if between is not None and all(literal(end) is not None for end in between.groups()):
        return f"({between[1]}, {between[2]})"
    behind = _BEHIND.fullmatch(text)
    if behind is not None and _begins_with_number(behind["bound"]):
        return f"{'≥' if behind['up'] else '≤'} {_in_figures(behind['bound'])}{behind['noun'] or ''}"
    return text


def _begins_with_number(text: str) -> bool:
    if number_in_words(text) is not None:
        return True
    first = text.split(maxsplit=1)[0].lstrip("$€£-")
    return literal(first.rstrip("%")) is not None or first.startswith(("\\frac", "\\sqrt", "π"))


def _in_figures(bound: str) -> str:
    found = number_in_words(bound)
    return bound if found is None else " ".join([str(found[0]), *found[1]])
