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


def standard_output() -> TextIO | None:
    """``sys.stdout``."""
    return sys.stdout


def set_standard_output(stream: TextIO | None) -> None:
    """Puts it in place."""
    sys.stdout = stream


def standard_error() -> TextIO | None:
    """``sys.stderr``."""
    return sys.stderr


def set_standard_error(stream: TextIO | None) -> None:
    """Puts it in place."""
    sys.stderr = stream


def passes_on(found: TextIO | None, before: TextIO | None) -> bool:
    """Whether what is printed still arrives: it goes into no memory that it did not go into before.

    ``contextlib.redirect_stdout`` around calls that overlap leaves the buffer of one of them in place, and all that training
    prints from then on in it. Bars and notebooks put streams of their own in place, which pass on what they get.
    """
    return found is before or not isinstance(found, io.StringIO | None)


def kind_of_stream(stream: TextIO | None) -> str:
    """The name of its class, or none."""
    return "none" if stream is None else type(stream).__name__


def is_deep_enough(found: int, before: int) -> bool:
    """Whether a limit on nested calls is none below Python's own that was not there before."""
    return found >= min(before, DEFAULT_DEPTH)


def set_garbage_collection(is_on: bool) -> None:
    """Switches it."""
    gc.enable() if is_on else gc.disable()
