"""Checksums of what rows hold beside their prompts: a resumed run tells by them that answers are others than before."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

PLAIN = (type(None), bool, int, float, complex, str)
DEEPEST = 50
"""Lists and dictionaries within each other that are looked into."""


def checksum_of(values: Iterable[Any]) -> int:
    """CRC-32 of a column's values, in order. Of objects that are no plain values only the class counts.

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


def _told(value: Any, depth: int = 0) -> Any:
    """What is the same of equal values in every process, as addresses and the order of sets are not."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind is bytes:
        return len(value), zlib.crc32(value)
    if depth < DEEPEST and kind in (list, tuple):
        return [_told(item, depth + 1) for item in value]
    if depth < DEEPEST and kind is dict:
        return [(_told(key, depth + 1), _told(item, depth + 1)) for key, item in value.items()]
    return kind.__name__


def changed_columns(saved: dict[str, int], now: dict[str, int]) -> list[str]:
    """Names of columns whose checksums differ, and of those that only one side has.

    Example:
        >>> changed_columns({"answer": 1, "level": 2}, {"answer": 3, "level": 2, "topic": 4})
        ['answer', 'topic']
    """
    return [name for name in dict.fromkeys([*saved, *now]) if saved.get(name) != now.get(name)]
