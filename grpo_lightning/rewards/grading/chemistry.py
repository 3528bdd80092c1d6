"""Formulas of compounds and ions, and reactions between them."""

from __future__ import annotations

import re

_COUNT = r"(?:_?[0-9]+|_\{\s?[0-9]+\s?\})?"
_COMPOUND = re.compile(rf"(?=.*[0-9])(?:[A-Z][a-z]?{_COUNT}){{2,}}")
_ION = re.compile(rf"(?:[A-Z][a-z]?{_COUNT})+\s?\^\{{?\s?[0-9]?\s?[-+]\s?\}}?")
_TERM = re.compile(rf"([0-9]*)\s?\*?\s?((?:[A-Z][a-z]?{_COUNT}|\((?:[A-Z][a-z]?{_COUNT})+\){_COUNT})+)")
_ARROW = re.compile(r"->|→|⇒|\\rightarrow|\\longrightarrow|\\to(?![a-z])")


def compound(text: str) -> str | None:
    """The formula of a compound or ion without marks of its indices; None for anything else.

    Example:
        >>> compound("C_6H_{12}O_6"), compound("H2O"), compound("Fe^{3+}"), compound("x_2"), compound("X^{2}")
        ('C6H12O6', 'H2O', 'Fe^3+', None, None)
    """
    is_one = _COMPOUND.fullmatch(text) or _ION.fullmatch(text)
    return re.sub(r"[_{}\s]", "", text) if is_one else None


def reaction(text: str) -> tuple[tuple[str, ...], ...] | None:
    """Both sides of a reaction, each in an order of its own; None for anything else.

    Example:
        >>> reaction("2H_2 + O_2 -> 2H_2O"), reaction("x + y -> z")
        ((('2H2', 'O2'), ('2H2O',)), None)
    """
    sides = _ARROW.split(text)
    if len(sides) != 2 or len(text) > 200:
        return None
    terms = [[_TERM.fullmatch(part.strip()) for part in side.split("+")] for side in sides]
    found = [[f"{term[1]}{re.sub(r'[_{}]', '', term[2])}" for term in side if term is not None] for side in terms]
    if any(len(kept) < len(side) for kept, side in zip(found, terms, strict=True)):
        return None
    return tuple(tuple(sorted(side)) for side in found)


def same_substance(reference: str, answer: str) -> bool | None:
    """Whether two compounds, ions or reactions are the same; None where the two are neither."""
    for reads in (compound, reaction):
        wanted, given = reads(reference), reads(answer)
        if wanted is not None and given is not None:
            return wanted == given
    is_plainly_one = reaction(reference) is not None or (_ION.fullmatch(reference) and re.search("[a-z0-9]", reference))
    return False if is_plainly_one else None  # R^+ may be a set of numbers


def is_substance(text: str) -> bool:
    """True for what ``same_substance`` reads without a parser of formulas."""
    return compound(text) is not None or reaction(text) is not None
