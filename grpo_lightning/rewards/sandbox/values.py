"""Plain values as JSON and back: what is rebuilt is a builtin to the bone, whatever the sender made it from."""

from __future__ import annotations

import datetime
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

EXACT_IN_JSON = 2**53
SEQUENCES: dict[str, type] = {"l": list, "t": tuple, "s": set, "f": frozenset, "q": deque}
TYPES = (int, float, complex, bool, str, bytes, bytearray, list, tuple, set, frozenset, dict, type(None))
"""Classes that travel by name."""
TIMES: dict[str, tuple[type, Callable[[Any], list[int]]]] = {
    "datetime": (
        datetime.datetime,
        lambda v: [v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond],
    ),
    "date": (datetime.date, lambda v: [v.year, v.month, v.day]),
    "time": (datetime.time, lambda v: [v.hour, v.minute, v.second, v.microsecond]),
    "timedelta": (datetime.timedelta, lambda v: [v.days, v.seconds, v.microseconds]),
}


def encode(value: Any, other: Callable[[Any], list[Any]], subclasses: bool = False) -> Any:
    """The value as JSON: what JSON has as it is, the rest as a list that starts with a letter.

    Args:
        value: Of any type.
        other: What is sent in place of a value that is not plain.
        subclasses: Send a value of a subclass as the builtin that it derives from; else it goes to ``other``.
    """
    kind: Any = type(value)
    if kind is type and value in TYPES:
        return ["y", TYPES.index(value)]
    if kind not in _ENCODERS:
        kind = _plain_kind(value) if subclasses else None
        if kind is None:
            return _array(value, other) if subclasses and hasattr(value, "tolist") else other(value)
    return _ENCODERS[kind](value, lambda item: encode(item, other, subclasses))


def _plain_kind(value: Any) -> Any:
    return next((base for base in type(value).__mro__ if base in _ENCODERS), None)


def _array(value: Any, other: Callable[[Any], list[Any]]) -> Any:
    """Arrays and scalars of NumPy as lists and numbers."""
    return encode(value.tolist(), other) if type(value).__module__.startswith("numpy") else other(value)


def _encode_int(value: int, recurse: Any) -> Any:
    value = int(value)
    return value if -EXACT_IN_JSON < value < EXACT_IN_JSON else ["i", hex(value)]


def _items(letter: str) -> Callable[[Any, Any], Any]:
    return lambda value, recurse: [letter, [recurse(item) for item in value]]


def _encode_dict(value: dict[Any, Any], recurse: Any) -> Any:
    return ["d", [[recurse(key), recurse(entry)] for key, entry in value.items()]]


def _time_parts(name: str, parts: Callable[[Any], list[int]]) -> Callable[[Any, Any], Any]:
    return lambda value, recurse: ["T", name, parts(value)]


_ENCODERS: dict[Any, Callable[[Any, Any], Any]] = {
    type(None): lambda value, recurse: None,
    bool: lambda value, recurse: value,
    int: _encode_int,
    float: lambda value, recurse: float(value),
    str: lambda value, recurse: str.__str__(value),
    complex: lambda value, recurse: ["c", value.real, value.imag],
    bytes: lambda value, recurse: ["b", value.decode("latin-1")],
    bytearray: lambda value, recurse: ["B", value.decode("latin-1")],
    range: lambda value, recurse: ["r", value.start, value.stop, value.step],
    dict: _encode_dict,
    Decimal: lambda value, recurse: ["D", str(value)],
    Fraction: lambda value, recurse: ["F", hex(value.numerator), hex(value.denominator)],
    **{kind: _items(letter) for letter, kind in SEQUENCES.items()},
    **{kind: _time_parts(name, parts) for name, (kind, parts) in TIMES.items()},
}


def decode(sent: Any, other: Callable[[list[Any]], Any]) -> Any:
    """The value that was sent; raises an ordinary exception where it is malformed.

    Args:
        sent: From JSON.
        other: The value in whose place a list with an unknown letter was sent.
    """
    if not isinstance(sent, list):
        if sent is None or type(sent) in (bool, int, float, str):
            return sent
        raise ValueError("malformed")
    letter = sent[0]
    if letter in SEQUENCES:
        return SEQUENCES[letter](decode(item, other) for item in sent[1])
    if letter == "d":
        return {decode(key, other): decode(entry, other) for key, entry in sent[1]}
    if letter in _DECODERS:
        return _DECODERS[letter](*sent[1:])
    return other(sent)


def _time(name: str, parts: list[int]) -> Any:
    return TIMES[name][0](*parts)


_DECODERS: dict[str, Callable[..., Any]] = {
    "i": lambda text: int(text, 16),
    "c": lambda real, imaginary: complex(real, imaginary),
    "b": lambda text: text.encode("latin-1"),
    "B": lambda text: bytearray(text.encode("latin-1")),
    "r": lambda start, stop, step: range(start, stop, step),
    "D": lambda text: Decimal(text),
    "F": lambda numerator, denominator: Fraction(int(numerator, 16), int(denominator, 16)),
    "T": _time,
    "y": lambda place: TYPES[place],
}
