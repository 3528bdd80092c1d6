"""What an answer is made of: single values, groups in brackets, equations, inequalities."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import product

from grpo_lightning.rewards.grading.bounds import as_intervals, in_signs
from grpo_lightning.rewards.grading.braces import OPENING, PAIRS, match_of, separators_outside, split_outside, wrapped
from grpo_lightning.rewards.grading.calendar import moment
from grpo_lightning.rewards.grading.forms import Equation, Group, Shape, Value, distinct
from grpo_lightning.rewards.grading.intervals import from_inequality, intersection, interval
from grpo_lightning.rewards.grading.left_sides import NAME
from grpo_lightning.rewards.grading.literals import arithmetic, literal
from grpo_lightning.rewards.grading.notation import tidy, trimmed
from grpo_lightning.rewards.grading.prose import (
    formula_in_sentence,
    number_in_sentence,
    only_answer,
    without_derivation,
    without_lead,
)
from grpo_lightning.rewards.grading.quantities import OTHER_VALUE, measured, quantity
from grpo_lightning.rewards.grading.signs import below_zero
from grpo_lightning.rewards.grading.symbols import FUNCTIONS, MONEY
from grpo_lightning.rewards.grading.words import is_name, is_words, same_meaning, yes_or_no

MAX_DEPTH = 8
"""Of brackets in brackets; deeper ones are left to the parser of formulas."""

_SEPARATORS = re.compile(
    r"\s*(?:,|;|&)?\s+(?:and|or)\s+|\s*∧\s*|\s*[,;](?!\s*(?:Jr|Sr|D\.\s?C)\b)\s*(?:(?:and|or)\s+)?"
)
_CONDITION = re.compile(r"(?:where |for |with )?[a-z](?:,\s?[a-z])*\s?∈\s?[ℤℕℝℚ]\S{0,4}")
_THOUSANDS = re.compile(
    r"(?<![0-9,.])-?[$€£]?(?!0,)[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9,])(?!,[0-9])"
    rf"|(?:[{MONEY}]|Rs\.?)\s?[0-9]{{1,2}}(?:,[0-9]{{2}})+,[0-9]{{3}}(?![0-9,])"
)
_IN_TWO_UNITS = re.compile(r"[0-9.]+ [A-Za-z]+, [0-9.]+ [A-Za-z]+")
_MATRIX = re.compile(
    r"\\begin\s?\{(p|b|B|small|)(?:matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\s?\{\1(?:matrix|array)\}", re.DOTALL
)
_RELATION = re.compile(r"[=≠<>≤≥≈]")
_EQUALS = frozenset("=≈")
_SUBJECT_WORDS = re.compile(rf"(?!(?:{'|'.join(FUNCTIONS)})\b)[A-Za-z][A-Za-z' ]*[A-Za-z]\s+(?=[-$(0-9])")
_BARE_MOD = re.compile(r"(?<![(\\A-Za-z])\\?b?mod\s+([0-9]+)$")
_CHOICE_LETTER = re.compile(r"\([A-Ja-j]\)")
_TRANSPOSED = re.compile(r"([(\[][^()\[\]]*,[^()\[\]]*[)\]])\s?\^\{?\s?(?:T|\\top|\\intercal)\s?\}?")
_SCALED = re.compile(r"(.{1,40}?)\s?\*?\s?(\\begin\s?\{[pbB]?matrix\}.*)", re.DOTALL)
_PLUS_MINUS = re.compile(r"([±∓])")
_SIGNED_COORDINATE = re.compile(r"[(,]\s*±")
MAX_SIGNS = 3
"""Of ± in one value: eight values."""
_BUILDER = re.compile(r"⦃\s*([a-z])\s*(?:∈\s*ℝ\s*)?[|:]\s*(.+)⦄")


def read(text: str, keep_names: bool = False) -> Shape:
    r"""The shape of an answer as it was written, out of its sentence.

    Args:
        text: The answer or reference.
        keep_names: True for a reference: ``Apollo 11`` is no eleven.

    Example:
        >>> read("The answer is $x = 2$ or $x = 3$").kind, read(r"$[0, \infty)$").kind, read("x > 2").kind
        ('list', '[)', '()')
        >>> read("42 apples").quantity.number.value, read("x^2 + y^2 = 1").parts
        (Fraction(42, 1), ('x^{2} + y^{2}', '1'))
    """
    text = without_lead(below_zero(only_answer(text.strip())))
    inside = formula_in_sentence(text)
    text = tidy(text if inside is None else inside)
    text = tidy(without_lead(without_derivation(text)))
    shape = parse(text)
    if keep_names and is_name(text):
        return shape if _named(text) is not None else Value(text, is_words=True)
    if _named(text) is None and (isinstance(shape, Value) or _is_plain_list(shape)):
        number = number_in_sentence(text)
        if number is not None:
            return parse(trimmed(number))
    return shape


def _is_plain_list(shape: Shape) -> bool:
    """True for a sentence with commas; not for ``5 or all real numbers``."""
    if not isinstance(shape, Group) or shape.kind != "list":
        return False
    return not any(isinstance(item, Value) and same_meaning(item.text) for item in shape.items)


def parse(text: str, depth: int = 0) -> Shape:
    """The shape of a text that ``tidy`` wrote."""
    text = as_intervals(in_signs(trimmed(text)))
    found = Value(text) if _CHOICE_LETTER.fullmatch(text) else _named(text)
    if found is not None or depth > MAX_DEPTH:
        return found or Value(text, is_words=is_words(text))
    for take_apart in (_matrix, _list, _union, _common, _points, _bracketed, _related, _plus_minus):
        shape = take_apart(text, depth)
        if shape is not None:
            return shape
    return Value(text, quantity(text), is_words(text) and measured(text) is None)


def _named(text: str) -> Value | None:
    """Values that are recognised as a whole, before commas and brackets are looked at."""
    known = same_meaning(text) or yes_or_no(text) or moment(text)
    if known is not None:
        return Value(known, is_words=True)
    if wrapped(text) is not None and "," in text:
        return None  # (1,234) is a pair
    found = (
        quantity(text)
        if literal(text) is not None or "," not in text or _THOUSANDS.search(text) or _IN_TWO_UNITS.fullmatch(text)
        else None
    )
    return None if found is None else Value(text, found)


def _matrix(text: str, depth: int) -> Shape | None:
    scaled = _SCALED.fullmatch(text)
    factor = literal(scaled[1]) if scaled is not None else None
    if scaled is not None and factor is not None:
        return _times(factor, _matrix(scaled[2], depth))
    match = _MATRIX.fullmatch(text)
    if match is None:
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", match[2]) if row.strip()]
    parts = (Group("()", tuple(parse(cell, depth + 1) for cell in row.split("&"))) for row in rows)
    matrix = Group("matrix", tuple(parts))
    return matrix if len(rows) != 1 or "&" in rows[0] else parse(rows[0], depth + 1)


def _times(factor: Fraction, matrix: Shape | None) -> Shape | None:
    """A matrix of plain numbers, each multiplied; None for entries that are formulas."""
    if not isinstance(matrix, Group):
        return None
    rows: list[Shape] = []
    for row in matrix.items:
        cells = row.items if isinstance(row, Group) else ()
        amounts = [cell.quantity for cell in cells if isinstance(cell, Value) and cell.quantity is not None]
        if not cells or len(amounts) < len(cells):
            return None
        rows.append(Group("()", tuple(parse(str(factor * amount.number.value)) for amount in amounts)))
    return Group("matrix", tuple(rows))


def _list(text: str, depth: int) -> Shape | None:
    kept = _THOUSANDS.sub(lambda match: match.group().replace(",", "\0"), text) if depth == 0 else text
    parts = [part.replace("\0", ",").strip() for part in split_outside(f" {kept} ", _SEPARATORS)]
    parts = [part for part in parts if part]
    if len(parts) < 2:
        return None if len(parts) == 0 or parts[0] == text else parse(parts[0], depth + 1)
    if _CONDITION.fullmatch(parts[-1]):
        stated = parse(kept[: kept.rindex(parts[-1])].replace("\0", ","), depth + 1)
        return Group("conditional", (stated, Value(parts[-1], is_words=True)))
    return _as_list(
        tuple(parse(part, depth + 1) for part in parts), _joint(separators_outside(f" {kept} ", _SEPARATORS))
    )


def _joint(separators: list[str]) -> str:
    """``or`` for ``1, 2 or 3``; empty for commas alone and for a mixture."""
    words = {word for separator in separators for word in ("or", "and", "∧") if word in separator}
    return words.pop() if len(words) == 1 else ""


def _as_list(items: tuple[Shape, ...], joined: str) -> Shape:
    if joined == "or" and len(different := distinct(items)) == 1:
        return different[0]
    common = intersection(items) if joined != "or" else None
    if common is not None:
        return common
    names = [item.name for item in items if isinstance(item, Equation)]
    if len(names) == len(items) and len(set(names)) == len(names) and all(names):
        items = tuple(sorted(items, key=lambda item: item.name if isinstance(item, Equation) else ""))
    return Group("list", _flat(items), joined=joined)


def _flat(items: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """``1, ±2`` has three values."""
    flat: list[Shape] = []
    for item in items:
        flat.extend(item.items if isinstance(item, Group) and item.kind == "list" else [item])
    return tuple(flat)


def _union(text: str, depth: int) -> Shape | None:
    parts = split_outside(text, re.compile("∪"))
    if len(parts) < 2 or not all(part.strip() for part in parts):
        return None
    return Group("union", tuple(parse(part, depth + 1) for part in parts))


def _common(text: str, depth: int) -> Shape | None:
    """``(2, ∞) ∩ (-∞, 5)``, where that is an interval."""
    parts = split_outside(text, re.compile("∩"))
    return intersection([parse(part, depth + 1) for part in parts]) if len(parts) == 2 else None


def _bracketed(text: str, depth: int) -> Shape | None:
    text = _TRANSPOSED.sub(r"\1", text) if _TRANSPOSED.fullmatch(text) else text
    builder = _BUILDER.fullmatch(text)
    if builder is not None:
        return parse(builder[2], depth + 1)
    if not text or text[0] not in OPENING or match_of(text, 0) != len(text) - 1:
        return None
    inner = text[1:-1]
    parts = [part for part in split_outside(inner, re.compile("[,;]"))]
    if len(parts) < 2:
        if PAIRS[text[0]] != text[-1]:
            return None
        if text[0] == "⦃" and inner.strip() == "∅":
            return Group("set", (Value("∅", is_words=True),))
        return parse(inner, depth + 1) if inner.strip() else None
    items = tuple(parse(part, depth + 1) for part in parts if part.strip())
    if text[0] in "{⦃":
        return Group("set", _flat(items))
    return interval(text[0] + text[-1], items) if len(items) == 2 else Group(text[0] + text[-1], items)


def _related(text: str, depth: int) -> Shape | None:
    congruent = split_outside(text, re.compile(r"\\equiv|≡"))
    if len(congruent) == 2 and NAME.fullmatch(congruent[0].strip()):
        return parse(_BARE_MOD.sub(r"(mod \1)", congruent[1]), depth + 1)
    member = split_outside(text, re.compile("∈"))
    if len(member) == 2 and NAME.fullmatch(member[0].strip()):
        return parse(member[1], depth + 1)
    sides = [side.strip() for side in split_outside(text, _RELATION)]
    if len(sides) < 2:
        return None
    relations = separators_outside(text, _RELATION)
    if not set(relations) - _EQUALS:
        return _equation(relations, sides, depth)
    return from_inequality(relations, sides, _is_variable, lambda side: parse(side, depth + 1))


def _equation(relations: list[str], sides: list[str], depth: int) -> Shape:
    name = ""
    if not sides[0]:
        relations, sides = relations[1:], sides[1:]
        if len(sides) == 1:
            return parse(sides[0], depth + 1)
    is_subject = _SUBJECT_WORDS.match(sides[0]) and not NAME.fullmatch(sides[0])
    if is_subject and OTHER_VALUE.isdisjoint(sides[0].lower().split()):
        sides[0] = _SUBJECT_WORDS.sub("", sides[0])  # Natalia sold 48 + 24 = 72
    while len(sides) > 1 and NAME.fullmatch(sides[0]) and sides[0] != "π":
        name = sides.pop(0) if not name else (sides.pop(0) and name)
    if len(sides) == 2 and not name and NAME.fullmatch(sides[1]) and literal(sides[0]) is not None:
        return Equation(sides[1], (sides[0],))  # 2 = x
    if name and len(sides) == 1:
        value = parse(sides[0], depth + 1)
        if isinstance(value, Group):  # x = ±2, S = {1, 2}
            return value
    is_exact = len(sides) > 1 and (literal(sides[-2]) is None or re.search("/|frac", sides[-2]) is not None)
    is_rounded = relations[-1] == "≈" and is_exact and "." in sides[-1]
    return Equation(name, tuple(sides), sides[-1] if is_rounded and literal(sides[-1]) is not None else "")


def _is_variable(side: str) -> bool:
    return not side or (bool(NAME.fullmatch(side)) and literal(side) is None)


def _points(text: str, depth: int) -> Shape | None:
    """``(±1, 0)`` is two points."""
    count = text.count("±")
    if wrapped(text) is None or text[0] != "(" or "," not in text or not count:
        return None
    return _plus_minus(text, depth) if count in (1, len(_SIGNED_COORDINATE.findall(text))) else None


def _plus_minus(text: str, depth: int) -> Shape | None:
    """Each ``±`` has a sign of its own; with a ``∓`` among them all turn together."""
    pieces = _PLUS_MINUS.split(text)
    if not 3 <= len(pieces) <= 2 * MAX_SIGNS + 1 or not pieces[-1].strip():
        return None
    marks = pieces[1::2]
    if "∓" in marks:
        choices = [tuple("+-"[(mark == "∓") != turned] for mark in marks) for turned in (False, True)]
    else:
        choices = list(product("+-", repeat=len(marks)))
    items: list[Shape] = []
    for signs in choices:
        written = pieces[0] + "".join(sign + piece for sign, piece in zip(signs, pieces[2::2], strict=True))
        written = re.sub(r"(^|[(,=]\s*)\+", r"\1", written.strip())
        value = arithmetic(written)
        items.append(parse(written if value is None else str(value), depth + 1))
    return Group("list", tuple(items))
