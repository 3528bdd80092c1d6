"""Numbers that only name a part of a text: ``Step 3:``, ``by equation 4``, ``(see Figure 2)``, the markers of a list."""

from __future__ import annotations

import re

_PARTS = (
    r"steps?|figures?|fig\.|equations?|eqs?\.|eqn\.?|tables?|theorems?|lemmas?|corollar(?:y|ies)|propositions?|sections?|appendix"
    r"|algorithms?|formulas?|identity|inequality"
)
_HEADS = rf"{_PARTS}|parts?|cases?|methods?|approach|problems?|questions?|exercises?|examples?"
_NUMBER = r"\(?[0-9]{1,3}(?:\.[0-9]{1,2}(?![0-9]))?\)?"
_WHOLE = re.compile(
    rf"[\s*_#(]{{0,10}}(?:(?:see|by|in|from|using)\s{{1,3}})?((?:{_PARTS})\s{{1,3}}{_NUMBER})[\s*_.:)]{{0,10}}",
    re.IGNORECASE,
)
_ALONE = re.compile(rf"[\s*_#]{{0,10}}(?:{_HEADS})\s{{1,3}}{_NUMBER}[\s*_.:]{{0,10}}", re.IGNORECASE)
_HEADING = re.compile(
    rf"^([ \t#*_>-]{{0,20}}(?:{_HEADS})[ \t]{{1,3}}){_NUMBER}(?=[*_]{{0,3}}[ \t]{{0,3}}(?:[:.)](?![0-9])|\n\s*\S|$))",
    re.IGNORECASE | re.MULTILINE,
)
_REFERRED = re.compile(
    r"((?:\b(?:by|from|see|per|using|via|in|under|with|apply|applying|into|cf\.)\s{1,3}(?:the\s{1,3})?|[(\[]\s?)"
    rf"(?:{_PARTS})\s{{1,3}}){_NUMBER}(?!\w|[./%][0-9])(?!\s{{0,3}}(?:times\b|[-+*/=<>^]))",
    re.IGNORECASE,
)
_ASKED = re.compile(
    rf"(\b(?:to|for|of|in|from)\s{{1,3}}(?:the\s{{1,3}})?(?:problem|question|exercise|part|case)\s{{1,3}}){_NUMBER}(?!\w|[./%][0-9])",
    re.IGNORECASE,
)
_CITED = re.compile(r"(?<=[0-9])\s?\[[0-9]{1,2}\](?=\.?\s*$)")
_MARKER = re.compile(r"^[ \t>*_#-]{0,10}\(?([0-9]{1,2})[.)](?=[*_]{0,2}[ \t]{1,10}\S)", re.MULTILINE)


def without_labels(text: str) -> str:
    r"""The text without the numbers of its headings, of what it refers to, and of the items of its lists.

    Nothing is taken from a text that is no more than ``Question 5``, which may be the answer. A list is told by its markers, 1 and 2 and so on at the beginning of lines; one marker alone may be an answer.

    Example:
        >>> without_labels("So 4 by equation 3"), without_labels("Step 2: add 3"), without_labels("the wrong one is step 3")
        ('So 4 by equation ', 'Step : add 3', 'the wrong one is step 3')
        >>> without_labels("12 is the answer to question 3."), without_labels("It is 12 [1].")
        ('12 is the answer to question .', 'It is 12.')
        >>> without_labels("1. add 5\n2. done")
        ' add 5\n done'
    """
    if _ALONE.fullmatch(text):
        return text
    text = _CITED.sub("", _ASKED.sub(r"\1", text))
    return _without_markers(_REFERRED.sub(r"\1", _HEADING.sub(r"\1", text)))


def whole_label(text: str) -> str | None:
    """The label that is all a text says; None for any other text.

    Example:
        >>> whole_label("See Figure 2."), whole_label("Figure 2 shows 7")
        ('Figure 2', None)
    """
    found = _WHOLE.fullmatch(text) if len(text) <= 60 else None
    return None if found is None else found[1]


def _without_markers(text: str) -> str:
    runs: list[list[re.Match[str]]] = []
    for marker in _MARKER.finditer(text):
        if int(marker[1]) == 1:
            runs.append([marker])
        elif runs and int(marker[1]) == len(runs[-1]) + 1:
            runs[-1].append(marker)
    parts, start = [], 0
    for marker in (marker for run in runs if len(run) > 1 for marker in run):
        parts.append(text[start : marker.start()])
        start = marker.end()
    return "".join([*parts, text[start:]])
