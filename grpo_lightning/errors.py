"""Errors that need no traceback, and those that need not be: of text that a terminal cannot show."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


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


def to_write(reason: object, otherwise: str) -> str:
    """What to do about a write that failed: ``otherwise``, unless too many files are open, which no disk space changes.

    Args:
        reason: The error, or its text.
        otherwise: Such as to free disk space.

    Example:
        >>> to_write("No space left on device", "Free disk space")
        'Free disk space'
        >>> to_write(OSError(24, "Too many open files"), "Free disk space")
        'Close the files and connections that a reward, a tool or a dataset leaves open, or raise their limit (ulimit -n)'
    """
    if os.strerror(errno.EMFILE) not in str(reason):
        return otherwise
    return "Close the files and connections that a reward, a tool or a dataset leaves open, or raise their limit (ulimit -n)"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error about a name that is none: a sentence with a space before it, or nothing where no other is like it.

    Example:
        >>> did_you_mean("acuracy", ["format", "accuracy"]), did_you_mean("mine", ["format"])
        (' Did you mean accuracy?', '')
        >>> did_you_mean("GRPO", ["grpo"])
        ' Did you mean grpo?'
    """
    near = nearest(name, known)
    return "" if near is None else f" Did you mean {near}?"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like another one, whatever letters are capitals; None where none is like it."""
    by_letters = {each.lower(): each for each in known}
    near = get_close_matches(name.lower(), by_letters, 1, cutoff=0.7)
    return by_letters[near[0]] if near else None


def write_all_text() -> None:
    r"""Lets ``print`` write what the encoding has no bytes for as an escape, in place of an error.

    Half a surrogate pair (a cut emoji, ``"\ud83d"`` of JSON), a path with bytes of another encoding, or an arrow in a Latin-1
    terminal would otherwise end the print, and with it the reward or the run that wanted to show it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
