"""A watchdog outside of the interpreter's lock, for calls of rewards that never let go of it."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GRACE = 30.0
"""Seconds without a sign of life, past the time limit of a call, after which the process is ended."""
BEAT_SECONDS = 1.0
PIPE_BYTES = 2**20
"""Room for thousands of calls between two looks of the other process."""


class LockWatch:
    """Tells a small process which calls are under way, and once a second that this process is alive.

    A call that holds the interpreter's lock for good (a regular expression that backtracks, C code) stops every thread, and
    with them all time limits and signal handlers. The other process then names the reward and kills this one. It starts
    with the first call; a process forked afterwards starts its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = threading.Event()
        self._pid = 0

    @contextlib.contextmanager
    def call(self, reward: str, rows: int, time_limit: float) -> Iterator[None]:
        """Watches a call of a reward while it lasts.

        Args:
            reward: Name, for the message.
            rows: Completions that it sees.
            time_limit: Seconds of its call; ``GRACE`` is added.
        """
        number, pid = next(self._numbers), self._started()
        about = {"reward": reward, "rows": rows, "thread": threading.get_native_id(), "seconds": time_limit + GRACE}
        self._say(pid, {"begin": number, **about})
        try:
            yield
        finally:
            self._say(pid, {"end": number})

    def close(self) -> None:
        """Ends the other process; the next call starts a new one."""
        with self._lock:
            process, self._process = self._process, None
            self._closing.set()
        if process is not None and process.stdin is not None and self._pid == os.getpid():
            process.stdin.close()
            process.kill()
            process.wait()

    def _started(self) -> int:
        with self._lock:
            if self._process is None or self._pid != os.getpid():
                self._pid, self._closing = os.getpid(), threading.Event()
                script = Path(__file__).with_name("lock_watch_process.py")
                command = [sys.executable, "-I", "-S", str(script), str(self._pid)]
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
                assert self._process.stdin is not None
                pipe = self._process.stdin.fileno()
                os.set_blocking(pipe, False)  # it can never hold up a reward
                if hasattr(fcntl, "F_SETPIPE_SZ"):
                    with contextlib.suppress(OSError):  # many pipes are open: the usual size does for most rewards
                        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
                threading.Thread(target=self._beat, args=(self._pid, self._closing), name="alive", daemon=True).start()
            return self._pid

    def _beat(self, pid: int, closing: threading.Event) -> None:
        while not closing.wait(BEAT_SECONDS):
            self._say(pid, {})

    def _say(self, pid: int, line: dict[str, Any]) -> None:
        with self._lock:
            process = self._process
            if process is not None and process.stdin is not None and self._pid == pid:
                with contextlib.suppress(OSError):  # it is busy, or gone: a call then goes on unwatched
                    os.write(process.stdin.fileno(), json.dumps(line).encode() + b"\n")
