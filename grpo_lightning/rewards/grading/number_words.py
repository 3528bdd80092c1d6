"""Numbers in words: ``seventy-two``, ``a dozen``, ``three quarters``, ``one and a half``, ``minus three``."""

from __future__ import annotations

from fractions import Fraction

from grpo_lightning.rewards.grading.literals import literal

SCALES = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
    "lakh": 10**5, "crore": 10**7,
}  # fmt: skip
_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBER_WORDS = {word: value for value, word in enumerate(_ONES.split())} | {
    word: 20 + 10 * place for place, word in enumerate(_TENS.split())
}
_PARTS = (
    {"half": 2, "halve": 2, "quarter": 4}
    | {
        word: place
        for place, word in enumerate(
            "third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split(), start=3
        )
    }
    | {"twentieth": 20, "hundredth": 100, "thousandth": 1000}
)
MAX_WORDS = 12


def number_in_words(text: str) -> tuple[Fraction, list[str]] | None:
    """The number that a text begins with in words, and the words behind it in lower case; None where it begins with none.

    Example:
        >>> [str(number_in_words(text)[0]) for text in ("Seventy-two", "a dozen", "three quarters", "half")]
        ['72', '12', '3/4', '1/2']
        >>> number_in_words("one and a half apples"), number_in_words("a cat")
        ((Fraction(3, 2), ['apples']), None)
        >>> number_in_words("two thirds of it"), number_in_words("two thirds of nine")
        ((Fraction(2, 3), ['of', 'it']), None)
    """
    return _number(text.lower().replace("-", " ").split())


def number_said(text: str) -> Fraction | None:
    """The value of a text that is a number and nothing else, in words or in figures; None for other texts.

    Example:
        >>> str(number_said("twenty-one")), str(number_said("1/2")), number_said("two cats")
        ('21', '1/2', None)
    """
    found = number_in_words(text)
    return literal(text) if found is None or found[1] else found[0]


def _number(words: list[str]) -> tuple[Fraction, list[str]] | None:
    if not words or len(words) > MAX_WORDS:
        return None
    if words[0] in ("minus", "negative"):
        found = _number(words[1:])
        return None if found is None else (-found[0], found[1])
    if words[0] == "half":
        return None if _is_share_of_number(words[1:]) else (Fraction(1, 2), words[1:])
    if words[0] in ("a", "an"):
        following = words[1:2]
        if not following or following[0] not in SCALES.keys() | {"half", "quarter", "third"}:
            return None
        words = ["one", *words[1:]]
    elif words[0] in SCALES:
        words = ["one", *words]
    whole = _whole(words)
    if whole is None:
        return None
    value, rest = whole
    part = part_named(rest[0], value) if rest else None
    if part is not None:
        return None if _is_share_of_number(rest[1:]) else (Fraction(value, part), rest[1:])
    if rest[:1] == ["and"]:
        behind = _number(rest[1:])
        if behind is not None and 0 < behind[0] < 1:
            return value + behind[0], behind[1]
    return Fraction(value), rest


def _is_share_of_number(words: list[str]) -> bool:
    """Whether a calculation goes on: ``half of 12``, ``two thirds of nine``; two thirds of the class are a fraction."""
    return words[:1] == ["of"] and not (words[1:] and words[1].isalpha() and _number(words[1:]) is None)


def _whole(words: list[str]) -> tuple[int, list[str]] | None:
    """``two million three hundred and twenty one``: each scale multiplies what came since a larger one."""
    total, current, place = 0, None, 0
    while place < len(words):
        word = words[place]
        if word in NUMBER_WORDS and _fits(current, NUMBER_WORDS[word]):
            current = (current or 0) + NUMBER_WORDS[word]
        elif word in SCALES and current:
            current *= SCALES[word]
            if SCALES[word] >= 1000:
                total, current = total + current, 0
        elif word != "and" or not _goes_on(total, current, words[place + 1 : place + 2]):
            break
        place += 1
    return None if current is None else (total + current, words[place:])


def _fits(current: int | None, value: int) -> bool:
    """``twenty`` takes a ``one`` behind it, ``hundred`` takes both; ``two`` takes neither."""
    if not current:
        return current is None or value > 0
    free = 100 if current % 100 == 0 else 10 if current % 10 == 0 and current % 100 >= 20 else 1
    return 0 < value < free


def _goes_on(total: int, current: int | None, following: list[str]) -> bool:
    """Whether "and" is part of the number, as in ``two hundred and five``."""
    return bool(total or current) and (current or 0) % 100 == 0 and NUMBER_WORDS.get("".join(following), 0) > 0


def scale_named(word: str) -> int | None:
    """What ``million``, or ``millions``, multiplies by; None for other words."""
    return SCALES.get(word.removesuffix("s"))


def part_named(word: str, value: int) -> int | None:
    """What ``thirds`` divide by; ``twenty-fifth`` is an ordinal, no fraction."""
    if word.endswith("s"):
        return _PARTS.get(word.removesuffix("s"))
    return _PARTS.get(word) if value < 20 else None
