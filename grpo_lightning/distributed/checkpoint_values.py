"""Values of users' data and rewards in checkpoints, which are read without running code that they name."""

from __future__ import annotations

import copyreg
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import torch

PLAIN = (type(None), bool, int, float, complex, str, bytes)
OF_TABLES = (datetime, date, time, timedelta, timezone, ZoneInfo, Decimal, UUID)
"""What cells of Parquet and Arrow files are read as, beside plain values."""


def zone(key: str) -> ZoneInfo:
    """The time zone of a name; its own pickled form calls ``getattr``, which ``weights_only`` does not allow."""
    return ZoneInfo(key)


copyreg.pickle(ZoneInfo, lambda value: (zone, (value.key,)))


def is_storable(value: Any) -> bool:
    """Whether a checkpoint that holds this value can be read again.

    Example:
        >>> is_storable({"at": [datetime(2024, 1, 1), Decimal("1.5")]}), is_storable(object())
        (True, False)
    """
    kind = type(value)  # a subclass would be read as a foreign class
    if kind in (list, tuple, set):
        return all(map(is_storable, value))
    if kind is dict:
        return all(is_storable(key) and is_storable(item) for key, item in value.items())
    if kind in (datetime, time):
        return is_storable(value.tzinfo)
    return kind in PLAIN or kind in OF_TABLES or kind is torch.Tensor


def as_storable(value: Any) -> Any:
    """The value, or its text where a checkpoint cannot hold it.

    Example:
        >>> as_storable([1, "a"]), as_storable(range(2))
        ([1, 'a'], 'range(0, 2)')
    """
    return value if is_storable(value) else str(value)


def columns_as_storable(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """``as_storable`` of each entry."""
    return {name: [as_storable(value) for value in values] for name, values in columns.items()}
