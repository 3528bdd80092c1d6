"""A number with its unit, and the sizes in which two units measure the same."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import product

from grpo_lightning.rewards.grading.measures import CURRENCIES, Dimension, readings
from grpo_lightning.rewards.grading.numeric import Number


@dataclass(frozen=True)
class Measured:
    """What stands before a unit, and the unit."""

    core: str
    size: Fraction = Fraction(1)
    """Of the unit, in the base of its dimension."""
    dimension: Dimension | None = None
    """None without a unit, and for words that are no unit of measure."""
    scale: int = 1
    """Of a word such as ``million`` before the unit."""


@dataclass(frozen=True)
class Quantity:
    """A number and its unit."""

    number: Number
    size: Fraction = Fraction(1)
    dimension: Dimension | None = None
    modulus: int | None = None
    """Of a residue, ``2 (mod 5)``."""
    larger: Fraction | None = None
    """Size of the first unit of ``5 ft 6 in``, of which the number may be meant where no unit is given: 5.5 or 66."""

    def readings(self) -> list[Number]:
        """The number in each unit that its text has."""
        return (
            [self.number] if self.larger is None else [self.number, Number(self.number.value * self.size / self.larger)]
        )


def sizes_beside(one: Quantity | Measured, other: Quantity | Measured) -> list[tuple[Fraction, Fraction]] | None:
    """Pairs of sizes in which both units measure the same, none where they cannot; None where a unit is missing."""
    if one.dimension is None or other.dimension is None:
        return None
    if any(base in CURRENCIES for base, _ in set(one.dimension) & set(other.dimension)):
        rates = {power < 0 for _, power in set(one.dimension) ^ set(other.dimension)}
        if rates == {True} and min(len(one.dimension), len(other.dimension)) == 1:
            return None  # $5 per hour, and $5
    pairs = product(
        readings(one.size, one.dimension, other.dimension), readings(other.size, other.dimension, one.dimension)
    )
    return [(ours[0], theirs[0]) for ours, theirs in pairs if ours[1] == theirs[1]]
