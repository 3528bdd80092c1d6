"""Units of measure and currencies: their names, what they measure and how large they are; a number with its unit, and the sizes
in which two units measure the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import product

from grpo_lightning.rewards.grading.numeric import Number

Dimension = tuple[tuple[str, int], ...]
"""What a unit measures, as sorted (base, power) pairs: ``(("length", 1), ("time", -1))`` for a speed."""

_PLURALS = ("s", "es")
# name of the base: "names = size" entries. Sizes are in metres, seconds, kilograms.
_TABLE = {
    "length": """meter metre = 1; in inch inche = 127/5000; ft foot feet = 381/1250; yd yard = 1143/1250; mi mile = 201168/125;
        micron = 1/1000000; angstrom = 1/10000000000""",
    "time": "sec second = 1; min minute = 60; h hr hour = 3600; day = 86400; week wk = 604800",
    "calendar": "month = 1; year yr = 12; decade = 120; century centurie = 1200",
    "mass": """kilo = 1; gm gram = 1/1000; mcg = 1/1000000000; lb lbs = 45359237/100000000; oz ounce = 45359237/1600000000;
        tonne = 1000""",
    "dollars": "$ usd dollar buck us$ a$ c$ ca$ au$ nz$ = 1; penny pennie = 1/100; dime = 1/10; nickel = 1/20",
    "cents": "¢ cent = 1/100",
    "pounds": "pound = 1",
    "tons": "ton = 1",
    "degrees": "° deg degree = 1",
    "radians": "rad radian = 1",
    "euros": "€ eur euro = 1; eurocent = 1/100",
    "sterling": "£ gbp = 1; pence = 1/100",
    "yen": "¥ jpy yen = 1",
    "rupees": "₹ rs inr rupee = 1",
    "current": "amp ampere = 1",
    "temperature": "kelvin = 1",
    "celsius": "C °C celsius = 1",
    "fahrenheit": "F °F fahrenheit = 1",
    "amount": "mole = 1",
    "data": "byte = 1; bit = 1/8",
}
_ENERGY, _POWER = {"mass": 1, "length": 2, "time": -2}, {"mass": 1, "length": 2, "time": -3}
_DERIVED = {
    "liter litre": (Fraction(1, 1000), {"length": 3}),
    "cc": (Fraction(1, 1000000), {"length": 3}),
    "gal gallon": (Fraction(3785411784, 10**12), {"length": 3}),
    "qt quart": (Fraction(3785411784, 4 * 10**12), {"length": 3}),
    "pint": (Fraction(3785411784, 8 * 10**12), {"length": 3}),
    "cup": (Fraction(3785411784, 16 * 10**12), {"length": 3}),
    "tbsp tablespoon": (Fraction(3785411784, 256 * 10**12), {"length": 3}),
    "tsp teaspoon": (Fraction(3785411784, 768 * 10**12), {"length": 3}),
    "hectare ha": (Fraction(10000), {"length": 2}),
    "acre": (Fraction(40468564224, 10**7), {"length": 2}),
    "mph": (Fraction(1397, 3125), {"length": 1, "time": -1}),
    "kmh kph kmph": (Fraction(5, 18), {"length": 1, "time": -1}),
    "newton": (Fraction(1), {"mass": 1, "length": 1, "time": -2}),
    "joule": (Fraction(1), _ENERGY),
    "cal": (Fraction(4184, 1000), _ENERGY),
    "kcal kilocalorie Cal": (Fraction(4184), _ENERGY),
    "watt": (Fraction(1), _POWER),
    "pascal": (Fraction(1), {"mass": 1, "length": -1, "time": -2}),
    "hertz": (Fraction(1), {"time": -1}),
    "volt": (Fraction(1), _POWER | {"current": -1}),
    "ohm": (Fraction(1), _POWER | {"current": -2}),
    "farad": (Fraction(1), {"mass": -1, "length": -2, "time": 4, "current": 2}),
    "coulomb": (Fraction(1), {"current": 1, "time": 1}),
    "tesla": (Fraction(1), {"mass": 1, "time": -2, "current": -1}),
}
# symbol, name of the unit, size in the tables' bases, prefixes of the symbol; the symbol itself too, unless in brackets.
_PREFIXED = """m meter 1 k c m d μ u n; g gram 1/1000 k m μ u n; s second 1 m μ u n p; L liter 1/1000 m μ d c; l liter 1/1000 m d c;
    A ampere 1 m μ u n k; V volt 1 k M m μ; W watt 1 k M G T m μ n; J joule 1 k M G m; N newton 1 k M m; Pa pascal 1 k M G h;
    Hz hertz 1 k M G T; Ω ohm 1 k M m; (F) farad 1 m μ u n p; K kelvin 1 m; mol mole 1 m μ k; B byte 1 k K M G T P;
    Wh joule 3600 k M G; eV joule 1602176634/10000000000000000000000000000 k M G; (T) tesla 1 m μ; (C) coulomb 1 m μ u n"""
_PREFIXES = {
    "k": 3, "K": 3, "M": 6, "G": 9, "T": 12, "P": 15, "h": 2, "d": -1, "c": -2, "m": -3, "μ": -6, "u": -6, "n": -9, "p": -12,
}  # fmt: skip
_SPELLED = {
    "kilo": 3,
    "mega": 6,
    "giga": 9,
    "tera": 12,
    "deci": -1,
    "centi": -2,
    "milli": -3,
    "micro": -6,
    "nano": -9,
    "pico": -12,
}
_SPELLED_UNITS = "meter metre gram second liter litre ampere amp volt watt joule newton pascal hertz ohm farad mole byte coulomb".split()
_ANY = "unit knot rpm dB"
_MAY_BE: dict[str, dict[str, tuple[Fraction, ...]]] = {
    "cents": {"dollars": (Fraction(1),), "euros": (Fraction(1),)},
    "pounds": {"mass": (Fraction(45359237, 100000000),), "sterling": (Fraction(1),)},
    "tons": {"mass": (Fraction(1000), Fraction(90718474, 100000), Fraction(10160469088, 10**7))},
    "degrees": {"celsius": (Fraction(1),), "fahrenheit": (Fraction(1),)},
}
"""What a name may stand for beside another unit, with its size: pounds are weight beside grams, money beside pence."""
CURRENCIES = frozenset("dollars cents euros sterling yen rupees".split())
"""Bases of money."""
GLUED = frozenset("m g s h L V W N J K".split())
"""One-letter units that may follow a number without a space; other letters there are variables."""


def readings(size: Fraction, dimension: Dimension, other: Dimension) -> list[tuple[Fraction, Dimension]]:
    """Size and dimension of a unit as they may be meant beside another unit: cents beside euros are those of a euro.

    Example:
        >>> [(str(size), dimension) for size, dimension in readings(Fraction(1), (("pounds", 1),), (("sterling", 1),))]
        [('1', (('sterling', 1),))]
        >>> readings(Fraction(1), (("degrees", 1),), (("degrees", 1),))
        [(Fraction(1, 1), (('degrees', 1),))]
    """
    bases = {base for base, _ in other}
    possible = bases.union(*(_MAY_BE.get(base, {}) for base in bases))
    for base, power in dimension:
        meant = _MAY_BE.get(base, {})
        kept = None if base in bases else next((name for name in meant if name in possible), None)
        if kept is not None:
            renamed = tuple(sorted((kept if name == base else name, exponent) for name, exponent in dimension))
            return [(size * one**power, renamed) for one in meant[kept]]
    return [(size, dimension)]


def measure(word: str) -> tuple[Fraction, Dimension | None] | None:
    """Size and dimension of a unit's name; the dimension is None where its size is not known; None for no unit.

    Example:
        >>> measure("km"), measure("knots"), measure("apples")
        ((Fraction(1000, 1), (('length', 1),)), (Fraction(1, 1), None), None)
    """
    word = word.rstrip(".")
    for name in (word, word.lower() if len(word) > 2 or word.lower() == "rs" else word):
        if name in _UNITS:
            return _UNITS[name]
        for ending in _PLURALS:
            if len(name) > 3 and name.endswith(ending) and name[: -len(ending)] in _UNITS:
                return _UNITS[name[: -len(ending)]]
    return None


def _read_tables() -> dict[str, tuple[Fraction, Dimension | None]]:
    units: dict[str, tuple[Fraction, Dimension | None]] = {name: (Fraction(1), None) for name in _ANY.split()}
    for base, entries in _TABLE.items():
        for entry in entries.split(";"):
            names, _, written = entry.partition("=")
            units.update({name: (Fraction(written.strip()), ((base, 1),)) for name in names.split()})
    for derived, (size, powers) in _DERIVED.items():
        units.update({name: (size, tuple(sorted(powers.items()))) for name in derived.split()})
    return units | _with_prefixes(units)


def _with_prefixes(units: dict[str, tuple[Fraction, Dimension | None]]) -> dict[str, tuple[Fraction, Dimension | None]]:
    """``kHz``, ``μg`` and ``kilohertz`` of the units that take prefixes, and their bare symbols."""
    found: dict[str, tuple[Fraction, Dimension | None]] = {}
    for entry in _PREFIXED.split(";"):
        symbol, unit, size, *prefixes = entry.split()
        dimension, symbol_alone = units[unit][1], symbol.strip("()")
        base = Fraction(size)
        if symbol == symbol_alone:
            found[symbol] = (base, dimension)
        found |= {prefix + symbol_alone: (base * Fraction(10) ** _PREFIXES[prefix], dimension) for prefix in prefixes}
    for unit in _SPELLED_UNITS:
        whole, dimension = units[unit]
        found |= {prefix + unit: (whole * Fraction(10) ** power, dimension) for prefix, power in _SPELLED.items()}
    return found


_UNITS = _read_tables()


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
