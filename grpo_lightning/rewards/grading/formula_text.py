"""Formulas as the parser of formulas gets them: without their units, and two of them in one unit."""

from __future__ import annotations

from grpo_lightning.rewards.grading.forms import Value
from grpo_lightning.rewards.grading.measures import sizes_beside
from grpo_lightning.rewards.grading.quantities import measured


def in_one_unit(reference: Value, answer: Value) -> tuple[str, str] | None:
    """Both formulas without their units, where those measure the same: ``2√3 m`` and ``200√3 cm``; None where not."""
    wanted, given = formula_text(reference), formula_text(answer)
    units = [value.quantity or measured(value.text) for value in (reference, answer)]
    if units[0] is None or units[1] is None:
        return wanted, given
    sizes = sizes_beside(units[0], units[1])
    if sizes is None or any(ours == theirs for ours, theirs in sizes):
        return wanted, given
    if not sizes:
        return None
    factor = sizes[0][1] / sizes[0][0]
    return wanted, f"\\frac{{{factor.numerator}({given})}}{{{factor.denominator}}}"


def formula_text(value: Value) -> str:
    """The value without its unit, decimals as decimals: they are rounded, fractions are not."""
    if value.quantity is None:
        unit = measured(value.text)
        return value.text if unit is None else unit.core
    number = value.quantity.number.value
    if number.denominator == 1:
        return str(number.numerator)
    if "." in value.text and (places := _decimal_places(number.denominator)) is not None:
        digits = str(abs(number.numerator) * 10**places // number.denominator).rjust(places + 1, "0")
        return f"{'-' if number < 0 else ''}{digits[:-places]}.{digits[-places:]}"
    return f"\\frac{{{number.numerator}}}{{{number.denominator}}}"


def _decimal_places(denominator: int) -> int | None:
    """How many decimals a fraction in lowest terms has; None for one that repeats."""
    places = denominator.bit_length()  # 2**n and 5**n divide 10**n
    if 10**places % denominator:
        return None
    return next(place for place in range(1, places + 1) if 10**place % denominator == 0)
