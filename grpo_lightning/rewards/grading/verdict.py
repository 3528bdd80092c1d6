"""Whether two shapes say the same. Formulas alone are left to mathematics; everything else is decided here."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from grpo_lightning.rewards.grading.angles import degrees_as_radians, is_in_radians
from grpo_lightning.rewards.grading.calendar import is_same_day, is_same_hour, is_year_of, same_moment
from grpo_lightning.rewards.grading.chemistry import is_substance, same_substance
from grpo_lightning.rewards.grading.forms import Equation, Group, Inequality, Shape, Value
from grpo_lightning.rewards.grading.formula_text import formula_text, in_one_unit
from grpo_lightning.rewards.grading.groups import CHOICES, are_choices, same_groups
from grpo_lightning.rewards.grading.intervals import FLIPPED
from grpo_lightning.rewards.grading.left_sides import denotes_value, may_name_one
from grpo_lightning.rewards.grading.literals import arithmetic, literal
from grpo_lightning.rewards.grading.measures import Quantity, sizes_beside
from grpo_lightning.rewards.grading.numeric import Margin, Number
from grpo_lightning.rewards.grading.quantities import in_short
from grpo_lightning.rewards.grading.ratios import is_ratio_or_digits, same_digits, same_ratio, same_score
from grpo_lightning.rewards.grading.shapes import parse
from grpo_lightning.rewards.grading.symbols import MONEY
from grpo_lightning.rewards.grading.words import choice, choice_label, same_words

Formulas = Callable[[str, str, str], bool]
"""``(relation, reference, answer)``, with the relation "equal", "about", "proportional" or "same sign", to a verdict."""

_LETTERS = frozenset("ABCDEFGHIJ")
_NO_MONEY = dict.fromkeys(map(ord, MONEY))
_SUM = re.compile(r"[0-9]{0,4}[a-z](?:\s?\+\s?[0-9]{0,4}[a-z])+")


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
                if isinstance(run, Value) and isinstance(several, Group) and CHOICES.fullmatch(run.text):
                    return are_choices(several, run.text)
            for place, other in enumerate((answer, reference)):
                bare = _without_condition((reference, answer)[place])
                if bare is not None and _without_condition(other) is None:
                    return self.same(bare, other) if place == 0 else self.same(other, bare)
            return (
                isinstance(reference, Group) and isinstance(answer, Group) and same_groups(reference, answer, self.same)
            )
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
        if any(_is_same_moment(*pair) for pair in ((reference, answer), (answer, reference))):
            return True
        if is_year_of(reference.text, answer.text) or self._in_short(reference, answer):
            return True
        if _squeezed(reference.text) == _squeezed(answer.text):
            return True
        wanted, given = choice(reference.text), choice(answer.text)
        if wanted is not None and given is not None:
            return wanted == given and not self._labels_differ(reference.text, answer.text)
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

    def _in_short(self, reference: Value, answer: Value) -> bool:
        """``1500`` and ``1.5k``, whichever is the reference; a formula such as ``2k`` stays one beside others."""
        for whole, short in ((reference, answer), (answer, reference)):
            value = in_short(short.text) if whole.quantity is not None and whole.quantity.dimension is None else None
            if value is not None and whole.quantity is not None:
                return value == whole.quantity.number.value
        return False

    def _labels_differ(self, reference: str, answer: str) -> bool:
        """Whether two choices of one letter have different numbers behind it, as ``(B) 12`` and ``(B) 13`` do."""
        labels = [choice_label(text) for text in (reference, answer)]
        values = [parse(label) for label in labels if label is not None]
        amounts = [value for value in values if isinstance(value, Value) and value.quantity is not None]
        return len(amounts) == 2 and not self._values(*amounts)

    def _quantities(self, reference: Quantity, answer: Quantity) -> bool:
        if reference.modulus and answer.modulus:
            difference = reference.number.value - answer.number.value
            return reference.modulus == answer.modulus and difference % reference.modulus == 0
        sizes = sizes_beside(reference, answer)
        if sizes is None:
            return any(
                given.equals(wanted, self.margin) for wanted in reference.readings() for given in answer.readings()
            )
        if reference.number.per == answer.number.per == 1:
            wanted, given = reference.number.value, answer.number.value
            return any(self.margin.allows(given * theirs / ours, wanted) for ours, theirs in sizes)
        return any(ours == theirs for ours, theirs in sizes) and answer.number.equals(reference.number, self.margin)

    def _formulas(self, reference: Value, answer: Value) -> bool:
        for one, other in ((reference, answer), (answer, reference)):
            angle = degrees_as_radians(one.text)
            if angle is not None and is_in_radians(other.text):  # 60° and π/3
                pair = (angle, formula_text(other)) if one is reference else (formula_text(other), angle)
                return self.formulas("equal", *pair)
        sides = in_one_unit(reference, answer)
        if sides is None:
            return False
        return _squeezed(sides[0]) == _squeezed(sides[1]) or self.formulas("equal", sides[0], sides[1])

    def _equations(self, reference: Shape, answer: Shape) -> bool:
        for rounded, other in ((reference, answer), (answer, reference)):
            value = parse(other.parts[0]) if isinstance(other, Equation) and len(other.parts) == 1 else other
            if isinstance(rounded, Equation) and rounded.rounded and not isinstance(value, Equation):
                is_same_name = not isinstance(other, Equation) or may_name_one(rounded.name, other.name)
                return is_same_name and self._rounded(rounded, value, is_reference=rounded is reference)
        if not isinstance(answer, Equation):
            if not isinstance(reference, Equation):
                return False
            if not reference.name and not denotes_value(reference.parts[0]):
                return False  # the reference x^2 + y^2 = 1 is no value
            return self.same(parse(reference.parts[-1]), answer)
        if not isinstance(reference, Equation):
            # 6 * 7 = 42 for 42, where each side must be right; 3 = 2 and f(3) = 2 are not 2; m + n = 42 names a sum.
            is_amount = isinstance(reference, Value) and reference.quantity is not None
            parts = answer.parts[1:] if is_amount and _is_sum(answer.parts[0]) else answer.parts
            return all(self._side_equals(reference, part) for part in parts)
        if reference.name and answer.name and may_name_one(reference.name, answer.name):
            return all(self._side_equals(parse(reference.parts[-1]), part) for part in answer.parts)
        if reference.name and answer.name and not _has_both_names(reference, answer):
            return False
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
                value = literal(exact)
                return self.formulas("about", exact, decimals) if value is None else _rounds_to(value, decimals)
        return False

    def _side_equals(self, reference: Shape, side: str) -> bool:
        value = arithmetic(side.translate(_NO_MONEY)) if literal(side) is None else None
        if value is not None and isinstance(reference, Value) and reference.quantity is not None:
            return self._values(reference, Value(side, Quantity(Number(value))))
        return self.same(reference, parse(side))

    def _inequalities(self, reference: Inequality, answer: Inequality) -> bool:
        flipped = Inequality(tuple(FLIPPED[one] for one in reversed(answer.relations)), answer.sides[::-1])
        for given in (answer, flipped):
            if given.relations != reference.relations:
                continue
            if [_squeezed(side) for side in given.sides] == [_squeezed(side) for side in reference.sides]:
                return True
            if len(given.sides) == 2 and all((*given.sides, *reference.sides)):
                pair = [f"({one.sides[0]})-({one.sides[1]})" for one in (reference, given)]
                return self.formulas("proportional" if given.relations[0] == "≠" else "same sign", *pair)
        return False


def _rounds_to(value: Fraction, decimals: str) -> bool:
    """Whether ``0.474`` is 9/19, rounded or cut off."""
    rounded = literal(decimals)
    places = len(decimals.partition(".")[2])
    return rounded is not None and abs(value - rounded) < Fraction(1, 10**places)


def _sides(equation: Equation) -> tuple[str, ...]:
    return (equation.name, *equation.parts) if equation.name else equation.parts


def _is_sum(text: str) -> bool:
    """True for ``m + n``, whose value may be asked for; ``x + x`` is a step on the way."""
    letters = re.sub("[^a-z]", "", text)
    return _SUM.fullmatch(text) is not None and len(set(letters)) == len(letters)


def _has_both_names(one: Equation, other: Equation) -> bool:
    """True for ``y = 2x`` and ``x = y/2``; the two of ``AB = 5`` and ``BC = 5`` name two things."""
    return one.name in "".join(other.parts) and other.name in "".join(one.parts)


def _is_same_moment(moment: Value, figures: Value) -> bool:
    """``3 PM`` and ``3``, ``December 25`` and ``12/25``."""
    if moment.text.startswith("date ") and figures.quantity is not None:
        return is_same_day(moment.text, figures.text)
    if not moment.text.startswith("time ") or figures.quantity is None or ":" in figures.text:
        return False
    return figures.quantity.dimension is None and is_same_hour(moment.text, figures.quantity.number.value)


def _squeezed(text: str) -> str:
    """Without spaces, except where they keep two numbers or words apart."""
    return re.sub(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])", "", text)


def _without_condition(shape: Shape) -> Shape | None:
    """``2n + 1`` of ``2n + 1, n ∈ ℤ``; None for anything else."""
    return shape.items[0] if isinstance(shape, Group) and shape.kind == "conditional" else None


def formulas_in(shape: Shape) -> list[str]:
    """The texts that a parser of formulas must be able to read, or else the shape is no reference."""
    if isinstance(shape, Group):
        return [text for item in shape.items for text in formulas_in(item)]
    if isinstance(shape, Value):
        is_plain = shape.quantity is not None or shape.is_words or len(shape.text) < 2
        is_read_here = is_plain or is_ratio_or_digits(shape.text) or is_substance(shape.text)
        return [] if is_read_here else [formula_text(shape)]
    sides = shape.sides if isinstance(shape, Inequality) else shape.parts
    return [text for side in sides if side for text in formulas_in(parse(side))]
