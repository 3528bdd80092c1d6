"""What stands beside the last number of a sentence and belongs to its answer: ``x = 2 or x = 3``, ``a ratio of 2 to 3``."""

from __future__ import annotations

import re

from grpo_lightning.rewards.grading.denied import CHANGES, change_before
from grpo_lightning.rewards.grading.number_words import NUMBER_WORDS

_SAME_NAME = re.compile(r"(?<![\w\\])([a-z])\s*=\s*[^\s,;]+(?:[,;]?\s+(?:or|and)\s+|,\s*)(?:\1\s*=\s*)?$")
_OTHER_NAME = re.compile(
    r"(?<![\w\\])(?P<name>[a-z](?:_?\{?[0-9]\}?)?)\s*=\s*-?[0-9][0-9./]*(?:[,;]?\s+and\s+|[,;]\s*)[a-z](?:_?\{?[0-9]\}?)?\s*=\s*$"
)
_GIVEN = re.compile(r"\b(?:if|when|for|with|since|where|let|given|at|as|because)\s+$", re.IGNORECASE)
_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_ITEMS = re.compile(
    rf"(?<![\w,.])(?:(?:{_NUMBER},\s+(?:and\s+|or\s+)?){{2,}}|(?:{_NUMBER},\s+)+{_NUMBER}\s+(?:and|or)\s+"
    rf"|(?:(?<=\bare )|(?<=\banswer is ))(?:{_NUMBER}[,;]\s+(?:and\s+|or\s+)?)|(?<=s: )(?:{_NUMBER};\s+))$"
)
_TO = re.compile(r"(?<![\w,.])[0-9]+\s+to\s+$")
_ALONE = re.compile(r"(?:^|[:=]|\b(?:is|are|was|takes?|costs?))\s*$")
_OF_TO = re.compile(r"\b(?:ratio|odds|score|won|lost|beat|proportion)\b", re.IGNORECASE)
_IN = re.compile(r"(?<![\w,.])[0-9]+\s+(?:in|out of)(?:\s+every)?\s+$")
_OUT_OF = re.compile(
    r"(?<![\w,.])(?:[0-9]+|one|two|three|four|five|six|seven|eight|nine)\s+out\s+of(?:\s+every)?\s+$", re.IGNORECASE
)
_OF_IN = re.compile(r"\b(?:chances?|probability|odds|likelihood)\b", re.IGNORECASE)
_NAME = re.compile(r"(?:\s+[A-Z][\w.-]*){1,3}$")
_OR_ELSE = re.compile(
    rf"\s+or\s+(?:all|any|every|no|none|infinitely|undefined|{'|'.join(NUMBER_WORDS.keys() - {'one'})})\b[^.\n]*"
)


def start_of_joined(line: str, start: int) -> int:
    """Where what belongs to the number at ``start`` begins; ``start`` where nothing before it does.

    Example:
        >>> line = "so x = 2 or x = 3"
        >>> line[start_of_joined(line, 16):], start_of_joined("from 2 to 3", 10), start_of_joined("the ratio is 2 to 3", 18)
        ('x = 2 or x = 3', 10, 13)
    """
    before = line[:start]
    found = _SAME_NAME.search(before) or _OTHER_NAME.search(before)
    if found is not None and not _GIVEN.search(before, 0, found.start()):
        return found.start()
    if re.search(r"[a-z]\s*=\s*$", before) is not None:
        return start
    if (parts := _OUT_OF.search(before)) is not None:
        return parts.start()
    if (span := _TO.search(before)) is not None and _ALONE.search(before, 0, span.start()):
        return span.start()
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
