"""Values of users' data and rewards in checkpoints, which are read without running code that they name."""

from __future__ import annotations

import copyreg
import re
import reprlib
from collections import OrderedDict, defaultdict
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

DEEPEST = 100
"""Lists and dictionaries within each other; pickle fails on some hundreds."""

REFUSED = re.compile(r"GLOBAL ([\w.]+)")
"""What torch says of the class or function that it does not make."""

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


def with_python_scalars(value: Any, around: tuple[int, ...] = ()) -> Any:
    """Python's scalars for numpy's, at any depth; whatever has none in it is the same object as before.

    Learning rates, and what schedulers keep of them, are numpy's where somebody's function of the step is.

    Args:
        value: Of a checkpoint.
        around: The ids of what it stands in.

    Example:
        >>> with_python_scalars([{"lr": np.float64(0.5), "fused": np.True_}])
        [{'lr': 0.5, 'fused': True}]
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, np.generic):
        return _of_python(value)
    kind = type(value)
    if kind not in (dict, OrderedDict, defaultdict, list, tuple) or id(value) in around or len(around) == DEEPEST:
        return value
    of_dict = kind not in (list, tuple)
    parts = [part for item in value.items() for part in item] if of_dict else list(value)
    changed = [with_python_scalars(part, (*around, id(value))) for part in parts]
    if all(new is old for new, old in zip(changed, parts, strict=True)):
        return value
    if not of_dict:
        return kind(changed)
    filled = defaultdict(value.default_factory) if kind is defaultdict else kind()
    filled.update(zip(changed[::2], changed[1::2], strict=True))
    return filled


def why_unreadable(error: BaseException) -> str:
    """What ``torch.load`` has against a file, in a line: the class or function that it names, where it is that.

    Example:
        >>> why_unreadable(ValueError("... Unsupported global: GLOBAL posix.mkdir was not an allowed global ..."))
        'it names posix.mkdir, which is no plain data'
    """
    text = str(error)
    named = REFUSED.search(text)
    if named is not None:
        return f"it names {named[1].rstrip('.')}, which is no plain data"
    words = ESCAPE.sub("", text.rpartition("WeightsUnpickler error:")[2])
    return " ".join(words.split())[:200]


def _stored(value: Any, instead: Callable[[Any], Any], around: tuple[int, ...] = ()) -> Any:
    """The value, with ``instead`` of what cannot be stored; ``around`` are the ids of what it stands in."""
    if isinstance(value, np.generic):
        value = _of_python(value)
    kind = type(value)  # a subclass would be read as a foreign class
    if kind in (list, tuple, set, dict):
        if id(value) in around or len(around) == DEEPEST:
            return instead(value)
        around = (*around, id(value))
        if kind is dict:
            items = value.items()
            return {_stored(key, instead, around): _stored(item, instead, around) for key, item in items}
        return kind(_stored(item, instead, around) for item in value)
    if kind in (datetime, time):
        return value if _has_storable_zone(value) else instead(value)
    if kind is ZoneInfo:
        return value if _is_named(value) else instead(value)
    return value if kind in PLAIN or kind in OF_TABLES or kind is torch.Tensor else instead(value)


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
