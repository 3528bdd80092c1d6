"""Whether two groups have the same members: lists, sets, unions, pairs, intervals, matrices."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from grpo_lightning.rewards.grading.forms import Equation, Group, Inequality, Shape, Value, distinct
from grpo_lightning.rewards.grading.left_sides import may_name_one

Same = Callable[[Shape, Shape], bool]
"""Whether the second shape, of an answer, says what the first one does."""

CHOICES = re.compile(r"[A-J]{2,8}")
"""Letters of several choices in a row."""
_COUNTED = re.compile(r"[0-9.,/]+ (?:\w+ )?([A-Za-z]+)")
_UNORDERED = frozenset({"list", "set", "union"})
_ANY_ORDER_OF_BRACKETS = ({"()", "list"}, {"[]", "list"}, {"()", "[]"})


def are_choices(group: Group, letters: str) -> bool:
    """True for ``A, B, D`` and ``ABD``."""
    items = [item.text.strip("() ") for item in group.items if isinstance(item, Value)]
    return group.kind in _UNORDERED and sorted(items) == sorted(letters)


def same_groups(reference: Group, answer: Group, same: Same) -> bool:
    """True where the answer has the reference's values, in its order where that counts."""
    if not may_name_one(reference.name, answer.name):
        return False  # x > 2 and y > 2
    if reference.kind in _UNORDERED and answer.kind in _UNORDERED:
        if _joined_otherwise(reference, answer):
            return False
        if reference.kind == answer.kind == "list" and "or" not in (reference.joined, answer.joined):
            return _same_members(reference.items, answer.items, same)  # 2, 2, 3 are three factors
        return _same_members(distinct(reference.items), distinct(answer.items), same)
    if _is_matrix(reference) and _is_matrix(answer):
        rows = [
            [item.items if isinstance(item, Group) else (item,) for item in group.items]
            for group in (reference, answer)
        ]
        return len(rows[0]) == len(rows[1]) and all(
            _in_order(one, other, same) for one, other in zip(*rows, strict=True)
        )
    wanted, given = _vector(reference), _vector(answer)
    if "matrix" in (reference.kind, answer.kind) and wanted is not None and given is not None:
        return _in_order(wanted, given, same)
    kinds = {reference.kind, answer.kind}
    is_interval = "[]" in kinds and len(reference.items) == 2  # [1, 2] is neither (1, 2) nor 1, 2
    is_interval |= bool(reference.name or answer.name)  # 0 < x < 1
    if len(kinds) > 1 and (is_interval or kinds not in _ANY_ORDER_OF_BRACKETS):
        return False
    return _in_order(reference.items, answer.items, same)


def _in_order(reference: Sequence[Shape], answer: Sequence[Shape], same: Same) -> bool:
    if len(reference) != len(answer):
        return False
    return all(same(one, other) for one, other in zip(reference, answer, strict=True))


def _same_members(reference: Sequence[Shape], answer: Sequence[Shape], same: Same) -> bool:
    if len(reference) != len(answer):
        return False
    wanted, given = ({_noun(item): item for item in items} for items in (reference, answer))
    if len(wanted) == len(reference) > 1 and wanted.keys() == given.keys():
        return all(same(item, given[noun]) for noun, item in wanted.items())  # 2 apples and 3 pears
    left = list(answer)
    for one in reference:
        # Equal texts first: pairs of formulas that differ cost a call each.
        left.sort(key=lambda other: other != one)
        found = next((place for place, other in enumerate(left) if same(one, other)), None)
        if found is None:
            return False
        del left[found]
    return True


def _noun(item: Shape) -> str:
    """What an amount counts, ``apple`` of ``2 apples``; empty for other shapes."""
    counted = _COUNTED.fullmatch(item.text) if isinstance(item, Value) and item.quantity is not None else None
    return "" if counted is None else counted[1].lower().removesuffix("s")


def _joined_otherwise(reference: Group, answer: Group) -> bool:
    """Whether one says "or" and the other "and", of claims: ``x < 2``, ``p``, ``x = 1`` beside ``y = 2``.

    Of the values of one variable either may be said.
    """
    joints = {one.joined or ("or" if one.kind == "union" else "") for one in (reference, answer)}
    if joints == {"or", "∧"}:
        return True
    names = {item.name for item in reference.items if isinstance(item, Equation)}
    is_any_of = len(names) > 1 or any(isinstance(item, Value) and _is_claim(item) for item in reference.items)
    if "or" in joints and len(joints) == 2 and is_any_of:
        return True
    return joints == {"or", "and"} and any(_is_claim(item) for item in reference.items)


def _is_claim(item: Shape) -> bool:
    if isinstance(item, Group):
        return bool(item.name)
    if isinstance(item, Value):
        return item.is_words or re.fullmatch("[A-Za-z]", item.text) is not None
    return isinstance(item, Inequality)


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
