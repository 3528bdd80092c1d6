"""Ports of this machine for servers and ranks that tests start, by a number that is given before it is bound."""

from __future__ import annotations

import fcntl
import itertools
import socket
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO

FIRST, PER_PROCESS, BEFORE_THE_SYSTEMS = 15000, 500, 32768
"""Below the ports that Linux deals out itself, to connections and to whoever binds port 0."""


def own_range() -> tuple[range, IO[str]]:
    """Ports that no other process of tests deals from while the file is open: neither a worker nor another run's."""
    for start in range(FIRST, BEFORE_THE_SYSTEMS - PER_PROCESS, PER_PROCESS):
        path = Path(tempfile.gettempdir(), f"grpo-lightning-tests-ports-{start}.lock")
        try:
            lock = path.open("a")
        except PermissionError:  # another user's
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return range(start, start + PER_PROCESS), lock
    raise RuntimeError(f"all ports from {FIRST} to {BEFORE_THE_SYSTEMS} are taken by other runs of these tests")


@cache
def _candidates() -> tuple[Iterator[int], IO[str]]:
    """The ports in turn, and what keeps them this process's own until it ends."""
    ports, lock = own_range()
    return itertools.cycle(ports), lock


def free_port() -> int:
    """A port that nobody uses, and that nobody is given before whoever asked has bound it.

    Each process of tests deals from a range of its own. A port of the system's range could become the port of some
    connection in the second that a server needs to start.
    """
    for port in itertools.islice(_candidates()[0], PER_PROCESS):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no port of this process's range is free")
