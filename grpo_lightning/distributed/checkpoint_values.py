"""Values of users' data and rewards in checkpoints, which are read without running code that they name."""

from __future__ import annotations

import copyreg
import re
import reprlib
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import torch

PLAIN = (type(None), bool, int, float, complex, str, bytes)
OF_TABLES = (datetime, date, time, timedelta, timezone, ZoneInfo, Decimal, UUID)
"""What cells of Parquet and Arrow files are read as, beside plain values."""

OF_CELLS = (list, tuple, set, dict)
CONTAINERS = (*OF_CELLS, frozenset, OrderedDict, defaultdict, Counter)
"""What cells and rewards may hold others in; and whatever is in a checkpoint."""

DEEPEST = 100
"""Lists and dictionaries within each other; pickle fails on some hundreds."""

REFUSED = re.compile(r"GLOBAL ([\w.]+)")
"""What torch says of the class or function that it does not make."""

WAY_OUT = "if you trust where it is from: trainer.fit(..., weights_only=False)"
"""Reading then runs what the file names."""

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
"""Of a terminal, such as that for bold text."""

torch.serialization.add_safe_globals([*OF_TABLES])  # loading with weights_only makes no other objects
# A zone's own pickled form calls ``getattr``, which ``weights_only`` does not allow.
copyreg.pickle(ZoneInfo, lambda value: (ZoneInfo, (value.key,)))
# Protocol 2, which torch.save writes, leaves out ``fold``: which of two equal times it is when clocks are set back.
copyreg.pickle(datetime, lambda value: value.__reduce_ex__(4))
copyreg.pickle(time, lambda value: value.__reduce_ex__(4))


class NotStorableError(Exception):
    """A value has no form that a checkpoint could hold."""


def stored_exactly(value: Any) -> Any:
    """A copy with Python's scalars for numpy's, and everything else as it is.

    Raises:
        NotStorableError: If a checkpoint cannot hold all of it.

    Example:
        >>> stored_exactly({"at": [date(2024, 1, 1), np.float32(0.5)]})
        {'at': [datetime.date(2024, 1, 1), 0.5]}
    """
    return _stored(value, _refuse)


def as_storable(value: Any) -> Any:
    """A copy with Python's scalars for numpy's, and text for whatever else a checkpoint cannot hold.

    Example:
        >>> as_storable([1, "a", np.True_]), as_storable({"a": range(2)})
        ([1, 'a', True], {'a': 'range(0, 2)'})
    """
    return _stored(value, _text)


def columns_as_storable(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """``as_storable`` of each entry."""
    return {name: [as_storable(value) for value in values] for name, values in columns.items()}


def with_python_scalars(value: Any) -> Any:
    """Python's scalars for numpy's, at any depth; whatever has none in it is the same object as before.

    Learning rates, and what schedulers keep of them, are numpy's where somebody's function of the step is.

    Example:
        >>> with_python_scalars([{"lr": np.float64(0.5), "fused": np.True_}])
        [{'lr': 0.5, 'fused': True}]
    """
    return _walked(value, _scalar, CONTAINERS)


def as_written(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as its file is to hold it: ``with_python_scalars``, and arrays of numbers in a form that is read as they were.

    Reading with ``weights_only`` makes neither numpy's scalars nor its arrays. Arrays of text, of times and of objects stay
    as they are, and are refused then, as are other classes of the user's.
    """
    written: dict[str, Any] = _walked(checkpoint, _written, CONTAINERS)
    return written


def array_of(numbers: torch.Tensor) -> np.ndarray:
    """The array that a file holds as a tensor; ``weights_only`` lets files call this, so it takes nothing else.

    Raises:
        TypeError: If it is no tensor.
    """
    if not isinstance(numbers, torch.Tensor):
        raise TypeError(f"an array is stored as a tensor, not as a {type(numbers).__name__}")
    return numbers.cpu().numpy()


class _WrittenArray:
    """In a file: the call of ``array_of`` with these numbers."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self.numbers = numbers

    def __reduce__(self) -> tuple[Callable[[torch.Tensor], np.ndarray], tuple[torch.Tensor]]:
        return array_of, (self.numbers,)


torch.serialization.add_safe_globals([array_of])


def why_unreadable(error: BaseException) -> str:
    """What ``torch.load`` has against a file, in a line: the class or function that it names, where it is that.

    Example:
        >>> why_unreadable(ValueError("... Unsupported global: GLOBAL posix.mkdir was not an allowed global ..."))
        'it names posix.mkdir, which is no plain data; if you trust where it is from: trainer.fit(..., weights_only=False)'
    """
    text = str(error)
    named = REFUSED.search(text)
    if named is not None:
        return f"it names {named[1].rstrip('.')}, which is no plain data; {WAY_OUT}"
    words = ESCAPE.sub("", text.rpartition("WeightsUnpickler error:")[2])
    return " ".join(words.split())[:200]


def _stored(value: Any, instead: Callable[[Any], Any]) -> Any:
    """A copy of the value, with ``instead`` of what cannot be stored."""

    def cell(part: Any) -> Any:
        part = _of_python(part) if isinstance(part, np.generic) else part
        kind = type(part)  # a subclass would be read as a foreign class
        if kind in (datetime, time):
            return part if _has_storable_zone(part) else instead(part)
        if kind is ZoneInfo:
            return part if _is_named(part) else instead(part)
        return part if kind in PLAIN or kind in OF_TABLES or kind is torch.Tensor else instead(part)

    return _walked(value, cell, OF_CELLS, is_copied=True)


def _walked(
    value: Any,
    leaf: Callable[[Any], Any],
    containers: tuple[type, ...],
    is_copied: bool = False,
    around: tuple[int, ...] = (),
) -> Any:
    """The value, with ``leaf`` of each part that is no container, holds itself, or lies too deep.

    Args:
        value: Of a checkpoint.
        leaf: What takes the place of a part.
        containers: Classes whose objects are walked through; of ``CONTAINERS``, named tuples are too.
        is_copied: Whether containers are others than before where nothing in them has changed.
        around: The ids of what the value stands in.
    """
    kind = type(value)
    is_named = containers is CONTAINERS and isinstance(value, tuple) and hasattr(kind, "_make")
    if not (kind in containers or is_named) or id(value) in around or len(around) == DEEPEST:
        return leaf(value)
    parts = [part for item in value.items() for part in item] if isinstance(value, dict) else list(value)
    around = (*around, id(value))
    changed = [_walked(part, leaf, containers, is_copied, around) for part in parts]
    if not is_copied and all(new is old for new, old in zip(changed, parts, strict=True)):
        return value
    if not isinstance(value, dict):
        return kind._make(changed) if is_named else kind(changed)
    filled = defaultdict(value.default_factory) if isinstance(value, defaultdict) else kind()
    for key, item in zip(changed[::2], changed[1::2], strict=True):
        filled[key] = item
    return filled


def _scalar(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    return _of_python(value) if isinstance(value, np.generic) else value


def _written(value: Any) -> Any:
    value = _scalar(value)
    if type(value) is not np.ndarray:
        return value
    try:
        return _WrittenArray(torch.from_numpy(value.copy()))
    except (TypeError, ValueError):  # of text, times, objects, or bytes in the other order
        return value


def _of_python(value: np.generic) -> Any:
    """Python's scalar; numpy's where there is none: times finer than microseconds are read as bare integers."""
    plain = value.item()
    is_time = isinstance(value, np.datetime64 | np.timedelta64)
    return value if is_time and isinstance(plain, int) else plain


def _has_storable_zone(value: datetime | time) -> bool:
    zone = value.tzinfo
    return zone is None or type(zone) is timezone or (type(zone) is ZoneInfo and _is_named(zone))


def _is_named(zone: ZoneInfo) -> bool:
    """Whether it can be found again; one out of a file has no name, or one that may be unknown."""
    try:
        return zone.key is not None and ZoneInfo(zone.key) is not None
    except (LookupError, ValueError, OSError):
        return False


def _refuse(value: Any) -> Any:
    raise NotStorableError


def _text(value: Any) -> str:
    try:
        return str(value)
    except RecursionError:
        return reprlib.repr(value)
