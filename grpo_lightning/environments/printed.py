"""What users' code prints, kept from the screen of a run and shown where it explains a fault."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

KEPT = 2000
"""Characters: the last ones that one call printed."""


class Tail:
    """The end of what was written to it."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        """Takes text, and forgets the first."""
        self.text = (self.text + text)[-KEPT:]
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""


_TAIL: ContextVar[Tail | None] = ContextVar("printed", default=None)


class _Routed:
    """A stream that gives what this thread or coroutine prints to its own tail, and all else to the stream behind it.

    Without a console there is none behind it, and what others print goes nowhere.
    """

    def __init__(self, behind: Any) -> None:
        self.behind = behind

    def write(self, text: str) -> int:
        stream = _TAIL.get() or self.behind
        return len(text) if stream is None else stream.write(text)

    def flush(self) -> None:
        stream = _TAIL.get() or self.behind
        if stream is not None:
            stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.behind, name)


_LOCK = threading.Lock()
_INSIDE = 0


@contextmanager
def captured(tail: Tail) -> Iterator[None]:
    r"""Prints of the block go to ``tail``, those of this thread or coroutine alone; others print as before.

    Example:
        >>> tail = Tail()
        >>> with captured(tail):
        ...     print("seen by nobody")
        >>> tail.text
        'seen by nobody\n'
    """
    _enter()
    token = _TAIL.set(tail)
    try:
        yield
    finally:
        _TAIL.reset(token)
        _leave()


def _enter() -> None:
    global _INSIDE
    with _LOCK:
        _INSIDE += 1
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if not isinstance(stream, _Routed):  # replaced since: by a progress bar, by a test
                setattr(sys, name, _Routed(stream))


def _leave() -> None:
    global _INSIDE
    with _LOCK:
        _INSIDE -= 1
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if not _INSIDE and isinstance(stream, _Routed):
                setattr(sys, name, stream.behind)
