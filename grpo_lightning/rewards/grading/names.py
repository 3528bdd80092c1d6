"""Names that end in a number: ``Apollo 11``, ``World War 2``, ``summer 1998``. Their words count, not the number alone."""

from __future__ import annotations

import re

from grpo_lightning.rewards.grading.modifiers import APART
from grpo_lightning.rewards.grading.quantities import OTHER_VALUE

_NAME = re.compile(r"(?:[A-Z][\w.'-]*\s+){1,4}[0-9]+|(?P<word>[a-z]{3,})\s+[0-9]+")
_NO_NAMES = OTHER_VALUE | frozenset(
    "answer total result sum value about exactly approximately around roughly altogether only just after before with for and"
    " are was were has have had get gets got sold makes made equals is".split()
)
_WORDS = re.compile(r"[^\W_]+")


def is_name(text: str) -> bool:
    """True for a reference of a few words and a number behind them, which is no amount of anything.

    Example:
        >>> is_name("Apollo 11"), is_name("summer 1998"), is_name("Total 72"), is_name("72 clips"), is_name("She sold 72")
        (True, True, False, False, False)
    """
    if _NAME.fullmatch(text) is None:
        return False
    return _NO_NAMES.isdisjoint(word.lower() for word in _WORDS.findall(text))


def same_name(reference: str, answer: str) -> bool:
    """True where the answer holds the whole name and no second number, or is nothing but the name's number.

    Example:
        >>> same_name("Apollo 11", "It was Apollo 11."), same_name("Apollo 11", "11"), same_name("Apollo 11", "Gemini 11")
        (True, True, False)
    """
    wanted, given = (_WORDS.findall(text.casefold()) for text in (reference, answer))
    if given == wanted[-1:]:
        return True
    if sum(word.isdigit() for word in given) > 1 or not OTHER_VALUE.isdisjoint(given):
        return False
    if not APART.isdisjoint(given) or len(given) < len(wanted):
        return False
    return any(given[place : place + len(wanted)] == wanted for place in range(len(given)))
