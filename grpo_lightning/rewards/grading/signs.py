"""Signs that a sentence puts in words, or with a space, before its number: ``it is minus 5``, ``the answer is - 5``;
and powers in plain sentences, so that their digits are no numbers of their own: ``50 m^2``, ``1.5 x 10^3``.
"""

from __future__ import annotations

import re

from grpo_lightning.rewards.grading.measures import measure
from grpo_lightning.rewards.grading.notation import MATH_SPAN
from grpo_lightning.rewards.grading.symbols import SUPERSCRIPTS

_DASHES = "\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{FIGURE DASH}\N{EN DASH}\N{EM DASH}\N{MINUS SIGN}"
# No run is unbounded: several beside each other would try every way to part thousands of stars.
_LEAD = (
    r"(?:\b(?:is|are|was|be|equals?|gets?|obtain|gives?|have|to|of|at|by|exactly|simply|therefore|thus|so)[*_]{0,3}:?[*_]{0,3}"
    r"|[=:][*_]{0,3})"
)
_NUMBER = r"(?=[*_]{0,3}(?:\\?[$€£¥]\s?)?(?:[0-9]|\.[0-9]|\\[dt]?frac))"
_WORD = re.compile(rf"({_LEAD}|\A)([ \t]{{0,3}}[*_]{{0,3}})\b(?:minus|negative)\s{{1,3}}{_NUMBER}", re.IGNORECASE)
_DASH = re.compile(rf"({_LEAD})([ \t]{{0,3}}[*_$]{{0,4}})[-{_DASHES}][ \t]{{1,3}}{_NUMBER}", re.IGNORECASE)
_FORMULA = re.compile(
    rf"({_LEAD}|\A)([ \t]{{0,3}})(?:minus|negative)\s{{1,3}}(\$|\\\()(?=[0-9.\\][^$\n]{{0,40}}(?:\$|\\\)))",
    re.IGNORECASE,
)
_TYPESET = re.compile(rf"(?<![\w)\]%.])[{_DASHES}]{_NUMBER}")
_BELOW_ZERO = re.compile(
    r"(?<![\w.,-])([0-9]{1,5}(?:\.[0-9]{1,5})?\s?(?:°\s?[CF]?|degrees?(?:\s(?:Celsius|Fahrenheit|C|F))?)?)\s(?:below|under)\szero\b",
    re.IGNORECASE,
)
_NEGATIVE = re.compile(rf"\bnegative[ \t]{{1,3}}{_NUMBER}", re.IGNORECASE)


def below_zero(text: str) -> str:
    """The text with ``-5 degrees`` for ``5 degrees below zero``.

    Example:
        >>> below_zero("It is 5 degrees below zero."), below_zero("5 below")
        ('It is -5 degrees.', '5 below')
    """
    return _BELOW_ZERO.sub(r"-\1", text)


def with_signs(text: str) -> str:
    """The text with ``-5`` for the minus of a number that is said, typeset as a dash, or apart from its number.

    The minus of ``10 minus 5`` and the dash of ``3 – 5`` are none, nor is the bullet of a list.

    Example:
        >>> with_signs("It is minus 5."), with_signs("The answer is - $5"), with_signs("10 minus 5 is 5")
        ('It is -5.', 'The answer is -$5', '10 minus 5 is 5')
    """
    text = below_zero(text)
    text = _DASH.sub(r"\1\2-", _WORD.sub(r"\1\2-", _FORMULA.sub(r"\1\2\3-", text)))
    return _NEGATIVE.sub("-", _TYPESET.sub("-", text)).replace("\N{MINUS SIGN}", "-")


_RAISED = {digit: raised for raised, digit in SUPERSCRIPTS.items()}
_NAME = r"[A-Za-zμΩ]{1,12}"
_POWER = r"(?:(?:\^|\*\*)\{?(-?[1-4])\}?)"
_UNIT = re.compile(
    rf"(?<=[0-9])(?:\s|(?=[a-z]{{2}}))(?:{_NAME}{_POWER}?\s?[/*·]\s?){{0,3}}{_NAME}{_POWER}(?!\w)(?!\s*[-+*/=^])"
)
_RAISED_NAME = re.compile(rf"({_NAME}){_POWER}")
_NAMES = re.compile(_NAME)
_TENS = re.compile(
    r"(?<![\w^.)}/])(?<!\^-)([0-9]+(?:\.[0-9]+)?)\s?(?:[xX×·*]|times)\s?10"
    rf"(?:\s?(?:\^|\*\*)\s?[({{]?([-+]?[0-9]{{1,2}})[)}}]?|([{''.join(SUPERSCRIPTS)}]{{1,3}}))(?![\w^])"
)
_SPAN = re.compile(r"(?<=[0-9])\s?\N{EN DASH}\s?(?=[0-9])")


def with_powers(text: str) -> str:
    """The text with ``50 m²`` for ``50 m^2`` and ``1.5e3`` for ``1.5 x 10^3``, but for its formulas.

    Example:
        >>> with_powers("It is 9.8 m/s^2 or 5 x^2."), with_powers("N = 6.02 x 10^23")
        ('It is 9.8 m/s² or 5 x^2.', 'N = 6.02e23')
    """
    parts, start = [], 0
    for span in MATH_SPAN.finditer(text):
        parts += [_plain(text[start : span.start()]), span[0]]
        start = span.end()
    return "".join([*parts, _plain(text[start:])])


def _plain(text: str) -> str:
    return _SPAN.sub(" - ", _UNIT.sub(_raised, _TENS.sub(_scientific, text)))


def _scientific(match: re.Match[str]) -> str:
    return f"{match[1]}e{match[2] or ''.join(SUPERSCRIPTS[char] for char in match[3])}"


def _raised(match: re.Match[str]) -> str:
    if any(measure(name) is None for name in _NAMES.findall(match[0])):
        return match[0]
    return _RAISED_NAME.sub(lambda unit: unit[1] + "".join(_RAISED[char] for char in unit[2]), match[0])
