"""Whether two shapes say the same. Formulas alone are left to mathematics; everything else is decided here."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from grpo_lightning.rewards.grading.angles import degrees_as_radians, is_in_radians
from grpo_lightning.rewards.grading.arithmetic import arithmetic
from grpo_lightning.rewards.grading.calendar import same_moment
from grpo_lightning.rewards.grading.chemistry import is_substance, same_substance
from grpo_lightning.rewards.grading.literals import literal
from grpo_lightning.rewards.grading.measures import in_the_money_of
from grpo_lightning.rewards.grading.quantities import Quantity, measured
from grpo_lightning.rewards.grading.ratios import is_ratio_or_digits, same_digits, same_ratio, same_score
from grpo_lightning.rewards.grading.shapes import Equation, Group, Inequality, Shape, Value, parse
from grpo_lightning.rewards.grading.symbols import MONEY
from grpo_lightning.rewards.grading.words import choice, choice_label, same_words
from grpo_lightning.rewards.text.numeric import Margin, Number

Formulas = Callable[[str, str, str], bool]
"""``(relation, reference, answer)``, with the relation "equal", "about", "proportional" or "same sign", to a verdict."""

_UNORDERED = frozenset({"list", "set", "union"})
_ANY_ORDER_OF_BRACKETS = ({"()", "list"}, {"[]", "list"}, {"()", "[]"})
_NUMBER_SETS = frozenset("ℤℕℝℚ")
_CHOICES = re.compile(r"[A-J]{2,8}")
_LETTERS = frozenset("ABCDEFGHIJ")
_NO_MONEY = dict.fromkeys(map(ord, MONEY))
_SUM = re.compile(r"[0-9]{0,4}[a-z](?:\s?\+\s?[0-9]{0,4}[a-z])+")
_FLIPPED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤", "≠": "≠", "=": "=", "≈": "≈"}


@dataclass(frozen=True)
class Comparison:
    """Compares an answer with a reference, part by part.

    Args:
        formulas: Decides on two formulas that are not the same text.
        margin: By how much two numbers may differ.
    """

    formulas: Formulas
    margin: Margin

    def same(self, reference: Shape, answer: Shape) -> bool:
        """True where the answer says what the reference says."""
        if isinstance(reference, Equation) or isinstance(answer, Equation):
            return self._equations(reference, answer)
        if isinstance(reference, Group) or isinstance(answer, Group):
            for run, several in ((reference, answer), (answer, reference)):
                if isinstance(run, Value) and isinstance(several, Group) and _CHOICES.fullmatch(run.text):
                    letters = [item.text.strip("() ") for item in several.items if isinstance(item, Value)]
                    return several.kind in _UNORDERED and sorted(letters) == sorted(run.text)  # ABD for A, B, D
            for place, other in enumerate((answer, reference)):
                bare = _without_condition((reference, answer)[place])
                if bare is not None and not isinstance(other, Group):
                    return self.same(bare, other) if place == 0 else self.same(other, bare)
            return isinstance(reference, Group) and isinstance(answer, Group) and self._groups(reference, answer)
        if isinstance(reference, Inequality) or isinstance(answer, Inequality):
            if not (isinstance(reference, Inequality) and isinstance(answer, Inequality)):
                return False
            return self._inequalities(reference, answer)
        return self._values(reference, answer)

    def _values(self, reference: Value, answer: Value) -> bool:
        if reference.quantity is not None and answer.quantity is not None:
            return self._quantities(reference.quantity, answer.quantity)
        if reference.text.startswith(("date ", "time ")) and answer.text.startswith(("date ", "time ")):
            return same_moment(reference.text, answer.text)
        if _squeezed(reference.text) == _squeezed(answer.text):
            return True
        wanted, given = choice(reference.text), choice(answer.text)
        if wanted is not None and given is not None:
            return wanted == given
        if reference.text.upper() in _LETTERS and answer.text.upper() == reference.text.upper():
            return True  # b for the choice B, and the other way round; but not r for R
        if wanted is not None or given is not None:  # (B) Rome for Rome, and the other way round
            labels = [choice_label(one.text) for one in (reference, answer)]
            if labels != [None, None]:
                texts = (
                    one.text if label is None else label for one, label in zip((reference, answer), labels, strict=True)
                )
                return self.same(*(parse(text) for text in texts))
        substance = same_substance(reference.text, answer.text)
        if substance is not None:
            return substance
        for compare in (same_score, same_ratio, same_digits):
            verdict = compare(reference, answer)
            if verdict is not None:
                return verdict
        if reference.is_words or answer.is_words:
            return same_words(reference.text, answer.text, ignore_case=reference.is_words)
        return self._formulas(reference, answer)

    def _quantities(self, reference: Quantity, answer: Quantity) -> bool:
        if reference.modulus and answer.modulus:
            difference = reference.number.value - answer.number.value
            return reference.modulus == answer.modulus and difference % reference.modulus == 0
        known = reference.dimension is not None and answer.dimension is not None
        wanted_kind = in_the_money_of(reference.dimension, answer.dimension)
        if known and wanted_kind != in_the_money_of(answer.dimension, reference.dimension):
            return False
        if known and reference.size != answer.size:
            wanted, given = reference.number.value * reference.size, answer.number.value * answer.size
            return self.margin.allows(given, wanted)
        return answer.number.equals(reference.number, self.margin)

    def _formulas(self, reference: Value, answer: Value) -> bool:
        sides = _formula_text(reference), _formula_text(answer)
        degrees = [degrees_as_radians(one.text) for one in (reference, answer)]
        for place, angle in enumerate(degrees):
            if angle is not None and is_in_radians((answer, reference)[place].text):  # 60° and π/3
                sides = (angle, sides[1]) if place == 0 else (sides[0], angle)
        return _squeezed(sides[0]) == _squeezed(sides[1]) or self.formulas("equal", sides[0], sides[1])

    def _groups(self, reference: Group, answer: Group) -> bool:
        if reference.kind in _UNORDERED and answer.kind in _UNORDERED:
            return self._same_members(_distinct(reference.items), _distinct(answer.items))
        if _is_matrix(reference) and _is_matrix(answer):
            rows = [
                [item.items if isinstance(item, Group) else (item,) for item in group.items]
                for group in (reference, answer)
            ]
            return len(rows[0]) == len(rows[1]) and all(self._in_order(*pair) for pair in zip(*rows, strict=True))
        wanted, given = _vector(reference), _vector(answer)
        if "matrix" in (reference.kind, answer.kind) and wanted is not None and given is not None:
            return self._in_order(wanted, given)
        kinds = {reference.kind, answer.kind}
        is_interval = "[]" in kinds and len(reference.items) == 2  # [1, 2] is neither (1, 2) nor 1, 2
        if len(kinds) > 1 and (is_interval or kinds not in _ANY_ORDER_OF_BRACKETS):
            return False
        return self._in_order(reference.items, answer.items)

    def _in_order(self, reference: Sequence[Shape], answer: Sequence[Shape]) -> bool:
        if len(reference) != len(answer):
            return False
        return all(self.same(one, other) for one, other in zip(reference, answer, strict=True))

    def _same_members(self, reference: Sequence[Shape], answer: Sequence[Shape]) -> bool:
        if len(reference) != len(answer):
            return False
        left = list(answer)
        for one in reference:
            # Equal texts first: pairs of formulas that differ cost a call each.
            left.sort(key=lambda other: other != one)
            found = next((place for place, other in enumerate(left) if self.same(one, other)), None)
            if found is None:
                return False
            del left[found]
        return True

    def _equations(self, reference: Shape, answer: Shape) -> bool:
        for rounded, other in ((reference, answer), (answer, reference)):
            value = parse(other.parts[0]) if isinstance(other, Equation) and len(other.parts) == 1 else other
            if isinstance(rounded, Equation) and rounded.rounded and not isinstance(value, Equation):
                is_same_name = not (isinstance(other, Equation) and rounded.name) or other.name == rounded.name
                return is_same_name and self._rounded(rounded, value, is_reference=rounded is reference)
        if not isinstance(answer, Equation):
            if not isinstance(reference, Equation):
                return False
            if not reference.name and not _is_call(reference.parts[0]):
                return False  # the reference x^2 + y^2 = 1 is no value
            return self.same(parse(reference.parts[-1]), answer)
        if not isinstance(reference, Equation):
            # 6 * 7 = 42 for 42, where each side must be right; 3 = 2 and f(3) = 2 are not 2; m + n = 42 names a sum.
            is_amount = isinstance(reference, Value) and reference.quantity is not None
            parts = answer.parts[1:] if is_amount and _SUM.fullmatch(answer.parts[0]) else answer.parts
            return all(self._side_equals(reference, part) for part in parts)
        if (
            reference.name
            and answer.name
            and (reference.name == answer.name or len(reference.name) * len(answer.name) > 1)
            and not _are_other_functions(reference.name, answer.name)
        ):
            return all(self._side_equals(parse(reference.parts[-1]), part) for part in answer.parts)
        sides = [_sides(equation) for equation in (reference, answer)]
        if sides[0] == sides[1]:
            return True
        if len(sides[0]) != 2 or len(sides[1]) != 2:
            return False
        return self.formulas("proportional", *(f"({left})-({right})" for left, right in sides))

    def _rounded(self, equation: Equation, other: Shape, is_reference: bool) -> bool:
        """``2√3 ≈ 3.46`` says both, if both are the same."""
        exact, decimals = equation.parts[-2:]
        for side in (Equation(equation.name, equation.parts[:-1]), parse(decimals)):
            side = parse(exact) if isinstance(side, Equation) and len(side.parts) == 1 else side
            if self.same(side, other) if is_reference else self.same(other, side):
                return self.formulas("about", exact, decimals)
        return False

    def _side_equals(self, reference: Shape, side: str) -> bool:
        value = arithmetic(side.translate(_NO_MONEY)) if literal(side) is None else None
        if value is not None and isinstance(reference, Value) and reference.quantity is not None:
            return self._values(reference, Value(side, Quantity(Number(value))))
        return self.same(reference, parse(side))

    def _inequalities(self, reference: Inequality, answer: Inequality) -> bool:
        flipped = Inequality(tuple(_FLIPPED[one] for one in reversed(answer.relations)), answer.sides[::-1])
        for given in (answer, flipped):
            if given.relations != reference.relations:
                continue
            if [_squeezed(side) for side in given.sides] == [_squeezed(side) for side in reference.sides]:
                return True
            if len(given.sides) == 2 and all((*given.sides, *reference.sides)):
                pair = [f"({one.sides[0]})-({one.sides[1]})" for one in (reference, given)]
                return self.formulas("proportional" if given.relations[0] == "≠" else "same sign", *pair)
        return False


def _sides(equation: Equation) -> tuple[str, ...]:
    return (equation.name, *equation.parts) if equation.name else equation.parts


def _is_call(text: str) -> bool:
    return re.fullmatch(r"\\?[A-Za-z]+'*\s?\(.+\)|\|.+\|", text) is not None


def _are_other_functions(one: str, other: str) -> bool:
    """``f(x)`` and ``g(x)``; not ``f(x)`` and ``y``."""
    return _is_call(one) and _is_call(other) and one.partition("(")[0].strip() != other.partition("(")[0].strip()


def _squeezed(text: str) -> str:
    """Without spaces, except where they keep two numbers or words apart."""
    return re.sub(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])", "", text)


def _formula_text(value: Value) -> str:
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


def _distinct(items: Sequence[Shape]) -> list[Shape]:
    """Without members that occur twice as text or number; equal formulas count as often as they are written."""
    kept: dict[object, Shape] = {}
    for item in items:
        number = item.quantity.number.value if isinstance(item, Value) and item.quantity is not None else None
        kept.setdefault(item if number is None else number, item)
    return list(kept.values())


def _without_condition(shape: Shape) -> Shape | None:
    """``2n + 1`` of ``2n + 1, n ∈ ℤ``; None for anything else."""
    if not isinstance(shape, Group) or shape.kind != "list" or len(shape.items) != 2:
        return None
    condition = shape.items[1]
    return shape.items[0] if isinstance(condition, Value) and condition.text in _NUMBER_SETS else None


def _is_matrix(group: Group) -> bool:
    return group.kind == "matrix" or (
        group.kind == "[]" and all(isinstance(item, Group) and item.kind in ("[]", "()") for item in group.items)
    )


def _vector(group: Group) -> Sequence[Shape] | None:
    """The entries of a row, a column, or ``(1, 2)`` and ``[1, 2]``, which stand for either; None for anything else."""
    if group.kind in ("()", "[]"):
        return None if any(isinstance(item, Group) for item in group.items) else group.items
    if group.kind != "matrix":
        return None
    rows = [item.items for item in group.items if isinstance(item, Group)]
    if len(rows) == 1:
        return rows[0]
    return [row[0] for row in rows] if all(len(row) == 1 for row in rows) else None


def formulas_in(shape: Shape) -> list[str]:
    """The texts that a parser of formulas must be able to read, or else the shape is no reference."""
    if isinstance(shape, Group):
        return [text for item in shape.items for text in formulas_in(item)]
    if isinstance(shape, Value):
        is_plain = shape.quantity is not None or shape.is_words or len(shape.text) < 2
        is_read_here = is_plain or is_ratio_or_digits(shape.text) or is_substance(shape.text)
        return [] if is_read_here else [_formula_text(shape)]
    sides = shape.sides if isinstance(shape, Inequality) else shape.parts
    return [text for side in sides if side for text in formulas_in(parse(side))]
