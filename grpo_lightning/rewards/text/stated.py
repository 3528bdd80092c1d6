"""The answer that a text states in words: ``The answer is (B).``, ``Answer: Paris``, or nothing but ``B``."""

from __future__ import annotations

import re

MAX_WORDS = 6
"""Of an answer in words."""
MAX_CHARS = 80
"""Of an answer in words, or of a text that is nothing but its answer."""

_LEAD = re.compile(
    r"\b(?:answer|choice|option)[*_]*\s*(?:is|:)[*_:]*|答案(?:是|为|选|:|：)"  # noqa: RUF001
    r"|\b(?:it(?:['’]s|\s+is|\s+must\s+be))(?=\s+[(\[]?[A-J](?![\w'’]))"  # noqa: RUF001
    r"|\bI(?:['’]d|\s+would|['’]ll|\s+will)?\s+(?:choose|pick|select)\b(?:\s+(?:option|choice|answer)\b)?",  # noqa: RUF001
    re.IGNORECASE,
)
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf)\{([^{}]*)\}")
_LETTER = re.compile(
    r"[(\[]?(?<![A-Za-z'’])([A-J])(?![\w'’])(?P<frame>[)\]:.]*)"  # noqa: RUF001 - the typeset apostrophe
    r"(?=\s*(?:$|[.,;:!()*\n。]|because\b|since\b|as\b|which\b|over\b|rather\b|instead\b)|(?<=[)\]:.])\s)"
)
_SEVERAL = re.compile(r"\(?[A-J]\)?\s*(?:,|/|&|\bor\b|\band\b)\s*(?:or\s+|and\s+)?\(?[A-J](?![\w'’])", re.ASCII)  # noqa: RUF001
_CLAUSE_END = re.compile(r"[.,;!?](?=\s|$)|\n|\s(?:because|since)\b")
_NOT_THE_OTHER = re.compile(r"([^\n;]*?[0-9][^\n,;]*?),?\s+(?:not|rather than|instead of)\s", re.IGNORECASE)
_ABOUT_A_NUMBER = re.compile(
    r"(?:less|more|fewer|greater|larger|smaller|higher|lower|at\s+least|at\s+most)\b", re.IGNORECASE
)
_FORMULA = re.compile(r"[\\^=+<>|{}\[\]$#/_]")
_AFFIRMED = re.compile(
    r"\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s+[(\[]?([A-J])[)\]]?\s+is\s+(?:the\s+)?(?:correct|right)\b"
)
_SO = re.compile(r"(?:so|thus|hence|therefore)[,:]?\s+(?=[(\[]?[A-J][)\]]?\.?$)", re.IGNORECASE)
_SO_LETTER = re.compile(
    r"[,;.!]\s{1,3}(?:so|thus|hence|therefore)[,:]?\s{1,3}(?:it\sis\s|it['’]s\s)?[(\[]?([A-J])[)\]]?[.*\s]{0,5}$",  # noqa: RUF001
    re.IGNORECASE,
)
_YES_OR_NO = re.compile(r"(?:so[,:]?\s+)?(?:yes|no|true|false)[,.;:]?\s+(?:because|since|as)\b", re.IGNORECASE)
_MARKS = "*_` \t\n"


def stated_answer(text: str) -> str | None:
    """The answer in words, or letter of a choice, of a text without tag, box or ``####``; None where a number is asked for.

    The last ``answer is`` or ``Answer:`` leads to it; a text of a few words, or that begins with a choice, is itself one.

    Example:
        >>> stated_answer("There are 4, so the answer is (B) because 3 < 4."), stated_answer("Answer: Paris.")
        ('B', 'Paris')
        >>> stated_answer("B) Rome"), stated_answer("The answer is 7, not 8."), stated_answer("The answer is 7.")
        ('B) Rome', '7', None)
    """
    text = _TEXT.sub(r"\1", text)
    affirmed = list(_AFFIRMED.finditer(text))
    if affirmed:
        return affirmed[-1][1]
    leads = list(_LEAD.finditer(text))
    if not leads:
        last = _SO_LETTER.search(text[-MAX_CHARS:])
        if last is not None:
            return last[1]
        return _whole(_SO.sub("", text.strip(_MARKS)))
    said = text[leads[-1].end() :].lstrip(_MARKS + ":$")
    line = said.partition("\n")[0].rstrip(_MARKS + ".")
    if _SEVERAL.match(said) or _ABOUT_A_NUMBER.match(said):
        return line
    letter = _LETTER.match(said)
    if letter is not None:
        named = letter["frame"] and len(line) <= MAX_CHARS and re.search(r"\w", line[letter.end() :])
        is_labelled = named and not re.match(r"\s*(?:because|since|as|which)\b", line[letter.end() :])
        return line if is_labelled and not letter["frame"].endswith(").") else letter[1]
    other = _NOT_THE_OTHER.match(said[: 2 * MAX_CHARS])
    if other is not None:
        return other[1].strip(_MARKS).rstrip("-–— ")  # noqa: RUF001 - a dash before "not"
    clause = _CLAUSE_END.split(said, maxsplit=1)[0]
    rest = said[len(clause) :]
    return clause.strip(_MARKS) if _is_in_words(clause) and not re.search("[0-9]", rest) else None


def _whole(text: str) -> str | None:
    if "\n" in text or len(text) > MAX_CHARS:
        return None
    if _YES_OR_NO.match(text):
        return text
    letter = _LETTER.match(text)
    return (
        text if (letter is not None and (letter["frame"] or letter.end() == len(text))) or _is_in_words(text) else None
    )


def _is_in_words(text: str) -> bool:
    is_short = len(text) <= MAX_CHARS and 0 < len(text.split()) <= MAX_WORDS
    return is_short and not any(char.isdigit() for char in text) and not _FORMULA.search(text)
