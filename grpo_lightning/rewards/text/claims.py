"""A text's sentences, and the numbers and names in them."""

from __future__ import annotations

import re

import regex  # type: ignore[import-untyped]  # ships no types

from grpo_lightning.rewards.grading.numeric import numbers_in

MAX_CHARS = 50_000
"""Read of a text; what follows is left out."""
MAX_SENTENCE_CHARS = 2_000
"""A sentence that never ends is cut here."""

_ENDS = re.compile(r"(?<=[.!?。！？])(?=[\s\"')\]]|$)[\"')\]]*\s*|\n+")  # noqa: RUF001 - Chinese and Japanese sentences end with these
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|vs|etc|e\.g|i\.e|approx|Fig|Jr|Sr|Inc|Ltd|U\.S)|\b[A-Z])\.$"
)
_NAME = regex.compile(r"\p{Lu}[\p{L}\p{N}'’.-]*\p{L}|\p{Lu}{2,}")  # noqa: RUF001 - the apostrophe that is typeset
_WORD = regex.compile(r"[\p{L}\p{N}]+")
_LETTER = regex.compile(r"\p{L}")


def sentences(text: str) -> list[str]:
    """The sentences of a text that say something: those with a letter or digit.

    Example:
        >>> sentences("Dr. Lee paid $3.50. Did he? He did!")
        ['Dr. Lee paid $3.50.', 'Did he?', 'He did!']
    """
    found: list[str] = []
    held = ""
    for part in _split(text[:MAX_CHARS]):
        held += part
        if _ABBREVIATION.search(held.strip()[-20:]) and "\n" not in part:
            continue
        found.append(held)
        held = ""
    pieces = [found_or_rest.strip() for found_or_rest in [*found, held]]
    cut = [piece[i : i + MAX_SENTENCE_CHARS] for piece in pieces for i in range(0, len(piece), MAX_SENTENCE_CHARS)]
    return [piece for piece in cut if _WORD.search(piece)]


def _split(text: str) -> list[str]:
    """The text cut behind each possible end of a sentence, nothing lost."""
    parts, start = [], 0
    for match in _ENDS.finditer(text):
        if match.end() > start:
            parts.append(text[start : match.end()])
            start = match.end()
    return [*parts, text[start:]]


def unsupported_numbers(claim: str, context: str) -> list[str]:
    """The numbers of the claim, as plain decimals or fractions, that the context does not have.

    By value: ``1,200`` supports ``1200.0``, and ``50%`` supports both ``0.5`` and ``50``.

    Example:
        >>> unsupported_numbers("It sold 1200 units in 2021.", "In 2020 sales were 1,200.")
        ['2021']
    """
    known = numbers_in(context)
    return [str(number.value) for number in numbers_in(claim) if not any(number.equals(other) for other in known)]


def unsupported_names(claim: str, context: str) -> list[str]:
    """Capitalised words of the claim, beyond its first word, that the context does not have in any case.

    A name split over several words is looked for word by word. Scripts without capitals have no names here.

    Example:
        >>> unsupported_names("The Nile flows through Kenya.", "the nile is a river in Egypt")
        ['Kenya']
    """
    known = {word.casefold() for word in _WORD.findall(context)}
    first = _LETTER.search(claim)
    start = first.start() if first else 0
    names = [match.group() for match in _NAME.finditer(claim) if match.start() > start]
    return [name for name in dict.fromkeys(names) if not {word.casefold() for word in _words(name)} <= known]


def _words(name: str) -> list[str]:
    words: list[str] = _WORD.findall(name)
    return words[:-1] if len(words) > 1 and words[-1] == "s" else words  # Kenya's
