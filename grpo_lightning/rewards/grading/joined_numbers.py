"""What stands beside the last number of a sentence and belongs to its answer: ``x = 2 or x = 3``, ``a ratio of 2 to 3``."""

from __future__ import annotations

import re

from grpo_lightning.rewards.grading.modifiers import CHANGES, change_before

_SAME_NAME = re.compile(r"(?<![\w\\])([a-z])\s*=\s*[^\s,;]+(?:[,;]?\s+(?:or|and)\s+|,\s*)(?:\1\s*=\s*)?$")
_ITEMS = re.compile(r"(?<![\w,.])(?:-?[0-9]+(?:\.[0-9]+)?,\s+(?:and\s+|or\s+)?){2,}$")
_TO = re.compile(r"(?<![\w,.])[0-9]+\s+to\s+$")
_OF_TO = re.compile(r"\b(?:ratio|odds|score|won|lost|beat|proportion)\b", re.IGNORECASE)
_IN = re.compile(r"(?<![\w,.])[0-9]+\s+(?:in|out of)(?:\s+every)?\s+$")
_OF_IN = re.compile(r"\b(?:chances?|probability|odds|likelihood)\b", re.IGNORECASE)
_NAME = re.compile(r"(?:\s+[A-Z][\w.-]*){1,3}$")
_OR_ELSE = re.compile(r"\s+or\s+(?:all|any|every|no|none|infinitely|undefined)\b[^.\n]*")


def start_of_joined(line: str, start: int) -> int:
    """Where what belongs to the number at ``start`` begins; ``start`` where nothing before it does.

    Example:
        >>> line = "so x = 2 or x = 3"
        >>> line[start_of_joined(line, 16):], start_of_joined("from 2 to 3", 10), start_of_joined("the ratio is 2 to 3", 18)
        ('x = 2 or x = 3', 10, 13)
    """
    before = line[:start]
    named = re.search(r"[a-z]\s*=\s*$", before)
    if named is not None:
        found = _SAME_NAME.search(before)
        return start if found is None else found.start()
    if (items := _ITEMS.search(before)) is not None:
        return items.start()
    for pattern, kind in ((_TO, _OF_TO), (_IN, _OF_IN)):
        found = pattern.search(before)
        if found is not None and kind.search(before, 0, found.start()):
            return found.start()
    return start


def start_of_changed_name(line: str, start: int) -> int:
    """Where ``before Apollo 11`` begins, whose number stands at ``start``; ``start`` for other sentences."""
    name = _NAME.search(line[:start].rstrip())
    if name is None:
        return start
    changed = change_before(line[: name.start()], "") or CHANGES.search(line[: name.start()])
    return start if changed is None else changed.start()


def end_of_alternative(line: str, end: int) -> int:
    """Where ``or all real numbers`` ends that follows the number; ``end`` where nothing like it does."""
    found = _OR_ELSE.match(line, end)
    return end if found is None else found.end()
