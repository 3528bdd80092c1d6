"""What Python keeps for a whole process and a reward may change by the way: read and set, one pair of functions each."""

from __future__ import annotations

import gc
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any, TextIO

DEFAULT_DEPTH = 1000
"""Python's own limit on nested calls. More is no harm, and libraries ask for it; with less, training fails."""


def umask() -> int | None:
    """The file mode creation mask; None where only setting it would tell, which other threads would notice."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return next((int(line.split()[1], 8) for line in status.splitlines() if line.startswith("Umask:")), None)


def set_umask(mask: int) -> None:
    """As ``os.umask``."""
    os.umask(mask)


def raising_filters() -> list[Any]:
    """Filters that make errors of warnings: training's own would end the run."""
    return [each for each in warnings.filters if each[0] == "error"]


def set_raising_filters(filters: list[Any]) -> None:
    """Takes out those that are not among ``filters``; what hides warnings stays, libraries do it when they are imported."""
    warnings.filters[:] = [each for each in warnings.filters if each[0] != "error" or each in filters]  # type: ignore[index]


class Stream:
    """Where a standard stream goes; equal to another unless it alone goes into memory.

    ``contextlib.redirect_stdout`` around calls that overlap leaves the buffer of one of them in place, and all that training
    prints from then on in it. Bars and notebooks put streams of their own in place, which pass on what they get.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def __eq__(self, before: object) -> bool:
        if not isinstance(before, Stream):
            return NotImplemented
        return self.stream is before.stream or not isinstance(self.stream, io.StringIO | None)

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return "none" if self.stream is None else type(self.stream).__name__


def standard_output() -> Stream:
    """``sys.stdout``."""
    return Stream(sys.stdout)


def set_standard_output(stream: Stream) -> None:
    """Puts it in place."""
    sys.stdout = stream.stream


def standard_error() -> Stream:
    """``sys.stderr``."""
    return Stream(sys.stderr)


def set_standard_error(stream: Stream) -> None:
    """Puts it in place."""
    sys.stderr = stream.stream


class NestedCalls:
    """The limit on nested calls; equal to another unless it alone is below Python's own."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __eq__(self, before: object) -> bool:
        if not isinstance(before, NestedCalls):
            return NotImplemented
        return self.limit >= min(before.limit, DEFAULT_DEPTH)

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return str(self.limit)


def nested_calls() -> NestedCalls:
    """``sys.getrecursionlimit``."""
    return NestedCalls(sys.getrecursionlimit())


def set_nested_calls(calls: NestedCalls) -> None:
    """As ``sys.setrecursionlimit``."""
    sys.setrecursionlimit(calls.limit)


def set_garbage_collection(is_on: bool) -> None:
    """Switches it."""
    gc.enable() if is_on else gc.disable()
