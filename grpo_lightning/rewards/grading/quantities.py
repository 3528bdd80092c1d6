"""A number with what it counts: currencies, units of measure, per cent, and any noun behind it."""

from __future__ import annotations

import re
from fractions import Fraction

from grpo_lightning.rewards.grading.literals import literal
from grpo_lightning.rewards.grading.measures import GLUED, Dimension, Measured, Quantity, measure
from grpo_lightning.rewards.grading.number_words import NUMBER_WORDS, SCALES, number_in_words, scale_named
from grpo_lightning.rewards.grading.numeric import Number
from grpo_lightning.rewards.grading.spoken import compound_amount, feet_and_inches, in_figures
from grpo_lightning.rewards.grading.symbols import FUNCTIONS, MONEY

OTHER_VALUE = frozenset(
    "or not no nor neither never between than least most under over above below almost nearly except plus minus"
    " divided half double twice triple quarter squared cubed power root factorial negative unless unequal wrong incorrect false"
    " mod modulo cannot isn doesn wait anything excluding except ish something".split()
)
"""Words beside a number that make it another value, or none."""
_NO_NOUNS = OTHER_VALUE | frozenset("and by to but where when which for choose if from with is are was".split())

MAX_UNIT = 40
"""Words, signs and spaces of a unit."""
_WORD = r"[A-Za-zμΩ°¢][A-Za-zμΩ°¢]*(?:-[A-Za-z]+)*\.?"
_TOKEN = re.compile(
    rf"(?P<word>(?:US|A|C|CA|AU|NZ|R)\$|[{MONEY}]|{_WORD})|(?P<power>\^\{{?\s?-?[1-4]\s?\}}?)|(?P<mark>[/*])|(?P<space>\s+)|(?P<other>.)"
)
_PREFIX = re.compile(
    rf"(?P<sign>[-+]?\s?)(?P<money>(?:US|A|C|CA|AU|NZ|HK|R)?[{MONEY}]|(?:USD|EUR|GBP|INR|JPY|CAD|AUD|Rs\.?|CHF)(?![A-Za-z]))\s?(?P<rest>.+)"
)
_SHORT_SCALES = {"k": 1000, "K": 1000, "M": 10**6, "m": 10**6, "B": 10**9, "bn": 10**9}
_SHORT_SCALE = re.compile(r"([-+]?[0-9.,]+)\s?(k|K|M|m|B|bn)")
_UNITLESS_SCALE = re.compile(r"([-+]?[0-9.,]+)\s?(k|bn)")
_PERCENT = re.compile(
    r"(?P<core>.+?)\s?(?:(?P<percent>(?:%|percent|per cent|percentage|pct)(?: points?)?)|(?P<mille>‰|per mill?e?|permille)|basis points?)"
)
_ORDINAL = re.compile(r"([0-9]+)\s?\^?\{?\s?(?:st|nd|rd|th)\s?\}?")
_UNIT_FRACTION = re.compile(r"(?<=[0-9])()\s*\\frac\{\s*([A-Za-z]+(?:\^\d)?)\s*\}\{\s*([A-Za-z]+(?:\^\{?\d\}?)?)\s*\}$")
_BY_BRACKET = re.compile(r"/\s?\(([A-Za-zμΩ][A-Za-zμΩ*^{}0-9 -]*)\)$")
_BY_HYPHEN = re.compile(r"([0-9][0-9,.]*)-([a-z]{3,}(?: [a-z]+)*)")
_CHANCE = re.compile(r"(\w+) (?:in|out of)(?: every)? (\w+)")
_RESIDUE = re.compile(
    r"(?P<core>[-+0-9{}^*/ \\a-z]+?)\s?(?:\(\s?\\?mod\s+\{?(?P<round>[0-9]{1,12})\}?\s?\)|\\pmod\s?\{?\s?(?P<latex>[0-9]{1,12})\s?\}?)"
)
_TWICE = re.compile(r"([^()]+?)\s?\(([^()]+)\)(?: [A-Za-z]+)?")
_ERA = re.compile(r"([0-9]{1,4})\s?(?:(B\.?C\.?(?:E\.?)?)|A\.?D\.?|CE)|A\.?D\.?\s([0-9]{1,4})")
_NOTE = re.compile(r"(.*[0-9%])\s*\(\s*([A-Za-z]{2}[A-Za-z ]*)\)")
_MINUS_WORD = re.compile(r"(?:minus|negative)\s+(?=[0-9\\.])", re.IGNORECASE)
_RAISED_WORD = re.compile(r"([A-Za-z]+) (squared|cubed)\b")
_BEFORE_UNIT = re.compile(r"[0-9)}\]πa-zA-Z%…!|]$")


def quantity(text: str) -> Quantity | None:
    r"""The quantity that a text (see ``tidy``) states; None where it states none, or does more than that.

    Example:
        >>> quantity("-$1,200").number.value, quantity("5 km/h").size, quantity("72 clips").number.value
        (Fraction(-1200, 1), Fraction(5, 18), Fraction(72, 1))
        >>> quantity("2x"), quantity("2 or 3"), quantity("not 2")
        (None, None, None)
    """
    text = in_figures(_MINUS_WORD.sub("-", text, count=1) if text[:1] in "mMnN" else text)
    text = _RAISED_WORD.sub(_raised, text) if "ed" in text else text
    plain = _number(text)
    if plain is not None:
        return Quantity(plain)
    ordinal = _ORDINAL.fullmatch(text)
    if ordinal is not None and (value := literal(ordinal[1])) is not None:
        return Quantity(Number(value))
    if (year := _ERA.fullmatch(text)) is not None:
        return Quantity(Number(Fraction(-int(year[1]) if year[2] else int(year[1] or year[3]))))
    text = _BY_HYPHEN.sub(r"\1 \2", text) if _BY_HYPHEN.fullmatch(text) else text
    for read in (feet_and_inches, _residue, _said_twice, _chance):
        if (whole := read(text)) is not None:
            return whole
    text = _BY_BRACKET.sub(r"/\1", _UNIT_FRACTION.sub(r"\1 \2/\3", text))
    note = _NOTE.fullmatch(text)
    found = measured(text if note is None else f"{note[1]} {note[2]}")
    number = None if found is None else _number(found.core)
    if found is None or number is None:
        return compound_amount(text) or _in_words(text)
    return Quantity(Number(number.value * found.scale, number.per), found.size, found.dimension)


def in_short(text: str) -> Fraction | None:
    """The number that ``1.5k`` and ``2bn`` are short for; None for other texts: ``2M`` may be metres.

    Example:
        >>> str(in_short("1.5k")), in_short("2M"), in_short("k")
        ('1500', None, None)
    """
    short = _UNITLESS_SCALE.fullmatch(text)
    value = None if short is None else literal(short[1])
    return None if short is None or value is None else value * _SHORT_SCALES[short[2]]


def measured(text: str) -> Measured | None:
    """A text taken apart into value and unit; None where it has no unit.

    Behind a number any noun is a unit; behind another formula only units of measure are.

    Example:
        >>> measured("10π cm^2").core, measured("5 red apples").core, measured("sin x"), measured("2 x")
        ('10π', '5', None, None)
    """
    prefix = _PREFIX.fullmatch(text)
    if prefix is not None:
        size, dimension = measure(prefix["money"]) or (Fraction(1), None)
        rest = prefix["sign"].strip() + prefix["rest"]
        short = _SHORT_SCALE.fullmatch(rest)  # $2.5M
        if short is not None:
            return Measured(short[1], size, dimension, _SHORT_SCALES[short[2]])
        behind = measured(rest)  # "$5 million", "$5 per hour"
        if behind is not None:
            rate = behind.dimension if behind.dimension is not None and behind.dimension[0][1] < 0 else ()
            size = size * behind.size if rate else size
            return Measured(behind.core, size, dimension and tuple(sorted(dimension + rate)), behind.scale)
        return Measured(rest, size, dimension)
    tokens = list(_TOKEN.finditer(text))
    start = len(tokens)
    while start and not tokens[start - 1]["other"]:
        start -= 1
    if start == len(tokens):
        return None
    for first in range(max(start, len(tokens) - MAX_UNIT), len(tokens)):
        if tokens[first]["word"]:
            found = _split_at(text, tokens, first)
            if found is not None:
                return found
    return None


def _raised(match: re.Match[str]) -> str:
    """``meters per second squared``; of other words the power stays a word."""
    return match[0] if measure(match[1]) is None else f"{match[1]}^{'2' if match[2] == 'squared' else '3'}"


def _split_at(text: str, tokens: list[re.Match[str]], first: int) -> Measured | None:
    core, words = text[: tokens[first].start()], tokens[first:]
    if first and tokens[first - 1]["mark"] == "/" and len(words[0]["word"]) > 1:  # $5/hour
        core, words = text[: tokens[first - 1].start()] + " ", tokens[first - 1 :]
    glued = not core.endswith(" ")
    core = core.strip()
    if not core or not _BEFORE_UNIT.search(core):
        return None
    is_number = _number(core) is not None
    name = tokens[first]["word"]
    if glued and not is_number and name not in ("°", "%"):
        return None
    if not is_number and len(name) == 1 and name.isascii() and re.search(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])", core):
        return None  # of r^2 h, h is no hour
    if glued and len(name) == 1 and name.isalpha() and name not in GLUED:
        return None
    if glued and measure(name) is None:
        return None
    return _with_unit(core, words, is_number)


def _with_unit(core: str, tokens: list[re.Match[str]], is_number: bool) -> Measured | None:
    size, powers, sign, scale = Fraction(1), dict[str, int](), 1, 1
    any_word = False
    for place, token in enumerate(tokens):
        word = token["word"]
        if token["mark"]:
            sign = -1 if token["mark"] == "/" else sign
        if not word:
            continue
        lower = word.lower().rstrip(".")
        if place == 0 and (named := scale_named(lower)) is not None:
            scale = named
            continue
        if lower in ("degree", "degrees", "deg", "°") and _is_scale_of_heat(tokens[place + 1 :]):
            continue
        if lower == "per":
            sign = -1
        elif lower in ("square", "sq", "cubic", "cu"):
            power = 2 if lower.startswith("sq") else 3
            following = next((other for other in tokens[place + 1 :] if other["word"]), None)
            known = measure(following["word"]) if following is not None else None
            if known is None or known[1] is None:
                any_word = True
            else:
                size *= known[0] ** (power - 1)
                _add(powers, known[1], power - 1)
        else:
            known = measure(word)
            if known is None:
                if not is_number or len(lower) < 2 or not _is_noun(lower):
                    return None
                any_word = True
                continue
            power = sign * _power_behind(tokens, place)
            size *= known[0] ** power
            if known[1] is None:
                any_word = True
            else:
                _add(powers, known[1], power)
    dimension = None if any_word else tuple(sorted((base, power) for base, power in powers.items() if power))
    if any_word or not dimension:
        return Measured(core, scale=scale)
    return Measured(core, size, dimension, scale)


def _add(powers: dict[str, int], dimension: Dimension, power: int) -> None:
    for base, exponent in dimension:
        powers[base] = powers.get(base, 0) + power * exponent


def _power_behind(tokens: list[re.Match[str]], place: int) -> int:
    following = tokens[place + 1]["power"] if place + 1 < len(tokens) else None
    return int(following.strip("^{} ")) if following else 1


def _is_scale_of_heat(tokens: list[re.Match[str]]) -> bool:
    following = next((token["word"] for token in tokens if token["word"]), "")
    return following.lower() in ("c", "f", "celsius", "fahrenheit")


def _is_noun(word: str) -> bool:
    return not (set(word.split("-")) & _NO_NOUNS) and word not in FUNCTIONS and word not in NUMBER_WORDS


def _number(text: str) -> Number | None:
    value = literal(text)
    if value is not None:
        return Number(value)
    percent = _PERCENT.fullmatch(text)
    value = literal(percent["core"]) if percent is not None else None
    if value is None or percent is None:
        return None
    return Number(value, per=100 if percent["percent"] else 1000 if percent["mille"] else 10000)


def _in_words(text: str) -> Quantity | None:
    """``seventy-two``, ``three quarters``, ``five apples``: one number in words and perhaps a noun."""
    found = number_in_words(text)
    if found is None:
        return None
    value, words = found
    if any(word in NUMBER_WORDS or word in SCALES or not word.isalpha() or not _is_noun(word) for word in words):
        return None
    known = measure(words[0]) if len(words) == 1 else None
    return Quantity(Number(value), *known) if known is not None else Quantity(Number(value))


def _chance(text: str) -> Quantity | None:
    """``1 in 4``, ``one out of every four``."""
    match = _CHANCE.fullmatch(text)
    if match is None:
        return None
    top, bottom = (
        literal(part) or (words.number.value if (words := _in_words(part)) else None) for part in match.groups()
    )
    return None if top is None or not bottom or not 0 < top < bottom else Quantity(Number(top / bottom))


def _residue(text: str) -> Quantity | None:
    match = _RESIDUE.fullmatch(text)
    value = literal(match["core"]) if match else None
    if match is None or value is None:
        return None
    return Quantity(Number(value), modulus=int(match["round"] or match["latex"]))


def _said_twice(text: str) -> Quantity | None:
    """``12 (twelve)`` and ``twelve (12)``, where both say the same."""
    match = _TWICE.fullmatch(text)
    if match is None:
        return None
    values = [literal(part) for part in match.groups()]
    words = [_in_words(part) for part, value in zip(match.groups(), values, strict=True) if value is None]
    figure = next((value for value in values if value is not None), None)
    if len(words) != 1 or figure is None or words[0] is None or words[0].number.value != figure:
        return None
    return words[0]
