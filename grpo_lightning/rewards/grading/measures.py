"""Units of measure and currencies: their names, what they measure and how large they are."""

from __future__ import annotations

from fractions import Fraction

Dimension = tuple[tuple[str, int], ...]
"""What a unit measures, as sorted (base, power) pairs: ``(("length", 1), ("time", -1))`` for a speed."""

_PLURALS = ("s", "es")
# name of the base: "names = size" entries. Sizes are in metres, seconds, kilograms; words that could be two units
# (pounds, degrees) measure nothing, so that they agree with any other.
_TABLE = {
    "length": """m meter metre = 1; km kilometer kilometre = 1000; cm centimeter centimetre = 1/100; nm nanometer = 1/1000000000;
        mm millimeter millimetre = 1/1000; dm decimeter decimetre = 1/10; μm micrometer micron = 1/1000000;
        in inch inche = 127/5000; ft foot feet = 381/1250; yd yard = 1143/1250; mi mile = 201168/125""",
    "time": """s sec second = 1; ms millisecond = 1/1000; min minute = 60; h hr hour = 3600; day = 86400; week wk = 604800""",
    "calendar": "month = 1; year yr = 12; decade = 120; century centurie = 1200",
    "mass": """kg kilogram kilo = 1; g gm gram = 1/1000; mg milligram = 1/1000000; lb lbs = 45359237/100000000;
        oz ounce = 45359237/1600000000; tonne = 1000""",
    "dollars": "$ usd dollar buck us$ a$ c$ ca$ au$ nz$ = 1; penny pennie = 1/100",
    "cents": "¢ cent = 1/100",  # of a dollar or a euro
    "euros": "€ eur euro = 1; eurocent = 1/100",
    "sterling": "£ gbp = 1; pence = 1/100",
    "yen": "¥ jpy yen = 1",
    "rupees": "₹ rs inr rupee = 1",
    "current": "A amp ampere = 1; mA = 1/1000",
    "temperature": "K kelvin = 1",
    "celsius": "C °C celsius = 1",
    "fahrenheit": "F °F fahrenheit = 1",
    "amount": "mol mole = 1",
    "data": "byte B = 1; kB KB = 1000; MB = 1000000; GB = 1000000000",
}
_DERIVED = {
    "L l liter litre": (Fraction(1, 1000), {"length": 3}),
    "mL ml milliliter millilitre cc": (Fraction(1, 1000000), {"length": 3}),
    "gal gallon": (Fraction(3785411784, 10**12), {"length": 3}),
    "hectare ha": (Fraction(10000), {"length": 2}),
    "acre": (Fraction(40468564224, 10**7), {"length": 2}),
    "mph": (Fraction(1397, 3125), {"length": 1, "time": -1}),
    "kmh kph kmph": (Fraction(5, 18), {"length": 1, "time": -1}),
    "N newton": (Fraction(1), {"mass": 1, "length": 1, "time": -2}),
    "J joule": (Fraction(1), {"mass": 1, "length": 2, "time": -2}),
    "kN kilonewton": (Fraction(1000), {"mass": 1, "length": 1, "time": -2}),
    "MJ megajoule": (Fraction(10**6), {"mass": 1, "length": 2, "time": -2}),
    "MW megawatt": (Fraction(10**6), {"mass": 1, "length": 2, "time": -3}),
    "kPa kilopascal": (Fraction(1000), {"mass": 1, "length": -1, "time": -2}),
    "MPa megapascal": (Fraction(10**6), {"mass": 1, "length": -1, "time": -2}),
    "kJ kilojoule": (Fraction(1000), {"mass": 1, "length": 2, "time": -2}),
    "W watt": (Fraction(1), {"mass": 1, "length": 2, "time": -3}),
    "kW kilowatt": (Fraction(1000), {"mass": 1, "length": 2, "time": -3}),
    "Pa pascal": (Fraction(1), {"mass": 1, "length": -1, "time": -2}),
    "Hz hertz": (Fraction(1), {"time": -1}),
}
_ANY = "V volt Ω ohm kWh eV ° deg degree rad radian pound ton knot rpm dB unit kHz MHz pt qt cal kcal"
GLUED = frozenset("m g s h L V W N J K".split())
"""One-letter units that may follow a number without a space; other letters there are variables."""


def in_the_money_of(dimension: Dimension | None, other: Dimension | None) -> Dimension | None:
    """The dimension with cents as those of the other's currency, where that is one of dollars or euros.

    Example:
        >>> in_the_money_of((("cents", 1),), (("euros", 1),)), in_the_money_of((("cents", 1),), (("sterling", 1),))
        ((('euros', 1),), (('cents', 1),))
    """
    currencies = {base for base, _ in other or ()} & {"dollars", "euros"}
    if dimension is None or len(currencies) != 1:
        return dimension
    (currency,) = currencies
    return tuple(sorted((currency if base == "cents" else base, power) for base, power in dimension))


def measure(word: str) -> tuple[Fraction, Dimension | None] | None:
    """Size and dimension of a unit's name; the dimension is None where several units have the name; None if unknown.

    Example:
        >>> measure("km"), measure("degrees"), measure("apples")
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
    return units


_UNITS = _read_tables()
