"""Ports of this machine for servers and ranks that tests start, by a number that is given before it is bound."""

from __future__ import annotations

import itertools
import os
import socket

FIRST, PER_WORKER, BEFORE_THE_SYSTEMS = 15000, 1500, 32768
"""Below the ports that Linux deals out itself, to connections and to whoever binds port 0."""

_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_start = FIRST + PER_WORKER * (_worker % ((BEFORE_THE_SYSTEMS - FIRST) // PER_WORKER))
_candidates = itertools.cycle(range(_start, _start + PER_WORKER))


def free_port() -> int:
    """A port that nobody uses, and that nobody is given before whoever asked has bound it.

    Two workers of the suite deal from ranges of their own. A port of the system's range could become the port of some
    connection in the second that a server needs to start.
    """
    for port in itertools.islice(_candidates, PER_WORKER):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no port from {_start} on is free")
