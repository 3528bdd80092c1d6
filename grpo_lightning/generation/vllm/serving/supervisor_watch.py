"""A server ends with the process that started it, however that ends: SIGKILL and a closed terminal ask nobody.

What watches is a process outside of the server's group: it outlives the server's head, and ends what that leaves behind.
This file is its program, and imports nothing but Python's own.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import subprocess
import sys
import time

WATCH_VARIABLE = "GRPO_LIGHTNING_SERVER_WATCH"
"""Environment variable of a server whose standard input is a pipe that only the starting process holds open."""
PATIENCE = 10.0
"""Seconds for the server and its workers to end by themselves."""


def watch_supervisor(patience: float = PATIENCE) -> None:
    """Has this process's group ended once the process that started it is gone; does nothing in other servers.

    Args:
        patience: Seconds between asking the group to end and making it.
    """
    if os.environ.get(WATCH_VARIABLE) and stat.S_ISFIFO(os.fstat(0).st_mode):
        command = [sys.executable, "-I", __file__, str(os.getpgrp()), str(patience)]
        silent = subprocess.DEVNULL
        subprocess.run(command, stdout=silent, stderr=silent, start_new_session=True, check=True)


def _watch(group: int, patience: float) -> None:
    """Waits for the end of standard input, or of the group, then ends the group."""
    while not select.select([0], [], [], 1.0)[0]:  # nothing is ever written; readable is the end
        if not _signal(group, 0):
            return
    _signal(group, signal.SIGTERM)
    until = time.monotonic() + patience
    while _signal(group, 0) and time.monotonic() < until:
        time.sleep(0.1)
    _signal(group, signal.SIGKILL)  # what did not listen


def _signal(group: int, number: int) -> bool:
    """Sends it to every process of the group; whether there is one."""
    with contextlib.suppress(OSError):
        os.killpg(group, number)
        return True
    return False


if __name__ == "__main__" and os.fork() == 0:  # the parent ends at once, so that this is no child of the server
    _watch(int(sys.argv[1]), float(sys.argv[2]))
