"""Powers in plain sentences, so that their digits are no numbers of their own: ``50 m^2``, ``1.5 x 10^3``."""

from __future__ import annotations

import re

from grpo_lightning.rewards.grading.measures import measure
from grpo_lightning.rewards.grading.notation import MATH_SPAN
from grpo_lightning.rewards.grading.symbols import SUPERSCRIPTS

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
