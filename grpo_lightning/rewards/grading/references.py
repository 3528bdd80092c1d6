"""The acceptable answers in a cell of a dataset: text, numbers, lists of them, and the dictionaries that datasets use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

ANSWER_KEYS = (
    "ground_truth",
    "aliases",
    "value",
    "normalized_aliases",
    "normalized_value",
    "text",
    "target",
    "answer",
    "answers",
)
"""Keys under which known datasets keep answers: verl's ``reward_model``, TriviaQA, SQuAD, Search-R1."""


class UnknownReferenceError(ValueError):
    """A reference of a shape that nobody said how to read."""


def reference_texts(reference: Any) -> list[str]:
    """The acceptable answers, any of which will do; none where the cell is empty.

    Args:
        reference: Text, a number, a list of references, or a dictionary in a known shape.

    Raises:
        UnknownReferenceError: For any other dictionary or object. Its ``str()`` is no answer that a model could give.

    Example:
        >>> reference_texts({"aliases": ["NYC"], "value": "New York"}), reference_texts(3.5), reference_texts(None)
        (['NYC', 'New York'], ['3.5'], [])
        >>> reference_texts({"style": "rule", "ground_truth": "42"}), reference_texts({"text": ["a", "b"], "answer_start": [1, 2]})
        (['42'], ['a', 'b'])
    """
    if reference is None or (isinstance(reference, float) and math.isnan(reference)):
        return []
    if isinstance(reference, str):
        return [reference]
    if isinstance(reference, Mapping):
        return _from_mapping(reference)
    if hasattr(reference, "tolist"):  # NumPy's arrays and scalars
        return reference_texts(reference.tolist())
    if isinstance(reference, list | tuple | set | frozenset):
        texts = [text for entry in reference for text in reference_texts(entry)]
        return list(dict.fromkeys(texts))
    if isinstance(reference, bool | int | float) or type(reference).__name__ in (
        "Decimal",
        "Fraction",
        "date",
        "datetime",
    ):
        return [str(reference)]
    raise UnknownReferenceError(f"a {type(reference).__name__} is no reference: give text, a number, or a list of them")


def _from_mapping(reference: Mapping[str, Any]) -> list[str]:
    found = [reference[key] for key in ANSWER_KEYS if reference.get(key) is not None]
    if not found:
        keys = ", ".join(map(str, reference)) or "none"
        raise UnknownReferenceError(
            f"the reference is a dictionary with the keys {keys}, of which none is known to hold answers "
            f"({', '.join(ANSWER_KEYS)}). Name the one that does, as in ground_truth_key: column.key in data.converter_args"
        )
    return reference_texts(found)
