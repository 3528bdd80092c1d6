"""Checksums of what rows hold beside their prompts: a resumed run tells by them that answers are others than before."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import torch

PLAIN = (type(None), bool, int, float, complex, str)
TIMES = (date, datetime, time)
DEEPEST = 50
"""Lists and dictionaries within each other that are looked into."""


def checksum_of(values: Iterable[Any]) -> int:
    """CRC-32 of a column's values, in order; the order of a dictionary's keys is none.

    Looked into are the values that cells of tables, Python lists and arrays have; of other objects only the class counts.

    Example:
        >>> checksum_of(["4", {"a": [1, None]}]) == checksum_of(["4", {"a": [1, None]}])
        True
        >>> checksum_of(["4", "5"]) == checksum_of(["45"])
        False
    """
    total = 0
    for value in values:
        total = zlib.crc32(repr(_told(value)).encode("utf-8", "surrogatepass"), total)
    return total


def _told(value: Any, around: tuple[int, ...] = ()) -> Any:
    """What is the same of equal values in every process, as addresses and the order of sets are not.

    Args:
        value: Of a column, or inside of one.
        around: The ids of what it stands in.
    """
    kind = type(value)
    if kind in PLAIN:
        return value
    if isinstance(value, bytes | bytearray):
        return len(value), zlib.crc32(value)
    if isinstance(value, TIMES):
        return kind.__name__, value.isoformat(), getattr(value, "fold", 0)
    if isinstance(value, timedelta | Decimal | UUID):
        return kind.__name__, str(value)
    if isinstance(value, np.generic):
        is_time = isinstance(value, np.datetime64 | np.timedelta64)  # whose item is a number without its unit
        return (kind.__name__, str(value)) if is_time or type(value.item()) not in PLAIN else value.item()
    return kind.__name__ if id(value) in around or len(around) == DEEPEST else _parts(value, (*around, id(value)))


def _parts(value: Any, around: tuple[int, ...]) -> Any:
    """The same of what holds others."""
    if isinstance(value, list | tuple):
        return [_told(item, around) for item in value]
    if isinstance(value, dict):
        return sorted(((_told(key, around), _told(item, around)) for key, item in value.items()), key=repr)
    if isinstance(value, set | frozenset):
        return sorted((_told(item, around) for item in value), key=repr)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value.dtype.str, value.shape, zlib.crc32(value.tobytes())
    if isinstance(value, np.ndarray):
        return type(value).__name__, _told(value.tolist(), around)
    if isinstance(value, torch.Tensor) and _is_dense(value):
        flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        return str(value.dtype), tuple(value.shape), zlib.crc32(flat.view(torch.uint8).numpy().tobytes())
    return type(value).__name__


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether its values lie one after the other in memory; those of sparse, nested, quantized and meta tensors do not."""
    has_values = not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)
    return has_values and tensor.layout == torch.strided


def changed_columns(saved: dict[str, int], now: dict[str, int]) -> list[str]:
    """Names of columns whose checksums differ, and of those that only one side has.

    Example:
        >>> changed_columns({"answer": 1, "level": 2}, {"answer": 3, "level": 2, "topic": 4})
        ['answer', 'topic']
    """
    return [name for name in dict.fromkeys([*saved, *now]) if saved.get(name) != now.get(name)]
