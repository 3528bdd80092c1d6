"""Signs that a sentence puts in words, or with a space, before its number: ``it is minus 5``, ``the answer is - 5``."""

from __future__ import annotations

import re

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
