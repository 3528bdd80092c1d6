"""A server ends with the process that started it, however that ends: SIGKILL and a closed terminal ask nobody."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time

WATCH_VARIABLE = "GRPO_LIGHTNING_SERVER_WATCH"
"""Environment variable of a server whose standard input is a pipe that only the starting process holds open."""
PATIENCE = 10.0
"""Seconds for the server to end by itself."""


def watch_supervisor() -> None:
    """Ends this process's group once the process that started it is gone; returns at once, and does nothing in other servers."""
    if os.environ.get(WATCH_VARIABLE) and stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=_watch, name="supervisor watch", daemon=True).start()


def _watch() -> None:
    while os.read(0, 1):  # nothing is ever written; empty is the end
        pass
    os.killpg(os.getpgrp(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os.killpg(os.getpgrp(), signal.SIGKILL)  # what did not listen
