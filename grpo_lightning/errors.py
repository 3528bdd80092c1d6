"""Errors that need no traceback, and those that need not be: of text that a terminal cannot show."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class ExplainedError(Exception):
    """Ends a run with a message that says why and what to change: the command line shows that alone."""


class RefusedRowError(ExplainedError, ValueError):
    """A row of the data that cannot be trained on, found when its step comes: with the weights loaded and steps behind it."""


@contextmanager
def refusing_rows() -> Iterator[None]:
    """For a step that reads its rows by what else runs before weights load, and raises ValueError there.

    Raises:
        RefusedRowError: In place of a ValueError, with its message.
    """
    try:
        yield
    except ValueError as error:
        raise RefusedRowError(str(error)) from error


def write_all_text() -> None:
    r"""Lets ``print`` write what the encoding has no bytes for as an escape, in place of an error.

    Half a surrogate pair (a cut emoji, ``"\ud83d"`` of JSON), a path with bytes of another encoding, or an arrow in a Latin-1
    terminal would otherwise end the print, and with it the reward or the run that wanted to show it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
