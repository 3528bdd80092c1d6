"""A watchdog outside of the interpreter's lock, for calls of rewards that never let go of it.

Its process runs this file as a script, ``python lock_watch.py PARENT``, with lines of JSON on standard input: ``{}`` once a
second, ``{"begin": id, "reward": name, "rows": n, "thread": native id, "seconds": limit}`` and ``{"end": id}``. Nothing but
the standard library is imported, so that it starts in a few hundredths of a second. It ends with its parent.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GRACE = 30.0
"""Seconds without a sign of life, past the time limit of a call, after which the process is ended."""
BEAT_SECONDS = 1.0
POLL_SECONDS = 0.5
PIPE_BYTES = 2**20
"""Room for thousands of calls between two looks of the other process."""

Call = dict[str, Any]


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
        self._pid = 0

    @contextlib.contextmanager
    def call(self, reward: str, rows: int, time_limit: float) -> Iterator[None]:
        """Watches a call of a reward while it lasts.

        Args:
            reward: Name, for the message.
            rows: Completions that it sees.
            time_limit: Seconds of its call; ``GRACE`` is added.
        """
        number, process = next(self._numbers), self._started()
        about = {"reward": reward, "rows": rows, "thread": threading.get_native_id(), "seconds": time_limit + GRACE}
        self._say(process, {"begin": number, **about})
        try:
            yield
        finally:
            self._say(process, {"end": number})

    def close(self) -> None:
        """Ends the other process; the next call starts a new one."""
        with self._lock:
            process, self._process = self._process, None
            if process is not None and process.stdin is not None and self._pid == os.getpid():
                process.stdin.close()
                process.kill()
                process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._process is None or self._pid != os.getpid():
                command = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
                self._process, self._pid = process, os.getpid()
                assert process.stdin is not None
                os.set_blocking(process.stdin.fileno(), False)  # it can never hold up a reward
                if hasattr(fcntl, "F_SETPIPE_SZ"):
                    with contextlib.suppress(OSError):  # many pipes are open: the usual size does for most rewards
                        fcntl.fcntl(process.stdin, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
                threading.Thread(target=self._beat, args=[process], name="alive", daemon=True).start()
            return self._process

    def _beat(self, process: subprocess.Popen[bytes]) -> None:
        while self._process is process:
            time.sleep(BEAT_SECONDS)
            self._say(process, {})

    def _say(self, process: subprocess.Popen[bytes], line: Call) -> None:
        with self._lock:
            if (
                self._process is process and process.stdin is not None
            ):  # else it was closed, and its number may be another's
                with contextlib.suppress(OSError):  # it is busy, or gone: a call then goes on unwatched
                    os.write(process.stdin.fileno(), json.dumps(line).encode() + b"\n")


def watch(parent: int) -> None:
    """In the other process: reads until the pipe is closed or the parent is gone; kills it after a silence that no call may last."""
    calls: dict[int, Call] = {}
    rest, heard = b"", time.monotonic()
    os.set_blocking(0, False)
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)  # rather than being woken by every call: the writers would pay for it
        data = _everything()
        if data is None:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in map(json.loads, lines):
            calls |= {line["begin"]: line} if "begin" in line else {}
            calls.pop(line.get("end"), None)
        if data or _state(parent) in "Tt":  # stopped by Ctrl-Z or a debugger, nobody is heard
            heard = time.monotonic()
        silence = time.monotonic() - heard
        if calls and silence > min(call["seconds"] for call in calls.values()):
            print(_message(list(calls.values()), parent, silence), file=sys.stderr, flush=True)
            os.kill(parent, signal.SIGKILL)
            return


def _everything() -> bytes | None:
    """What has been written since; None where the other end is closed."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while part := os.read(0, 65536):
            data += part
        return None
    return data


def _message(calls: list[Call], parent: int, silence: float) -> str:
    """What is said before the run is killed: of several calls, those whose thread is at work."""
    busy = [call for call in calls if _state(parent, call["thread"]) == "R"] or calls
    named = " or ".join(dict.fromkeys(f"'{call['reward']}'" for call in busy))
    return (
        f"Reward {named}, called on {max(call['rows'] for call in busy)} completions, has let nothing else in this process run "
        f"for {silence:.0f} s: a regular expression that backtracks, or C code that keeps Python's interpreter lock. No time "
        "limit can end such a call in a thread, so the run is killed. Give the reward isolation: process, where the call "
        "is killed at its time limit and its completions count as None; then go on with --ckpt_path last."
    )


def _state(process: int, thread: int | None = None) -> str:
    """The kernel's letter for what a thread does (R: runs, T: stopped); "?" where that is not known."""
    try:
        return Path(f"/proc/{process}/task/{thread or process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "?"


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # for the trainer, with which this process ends
        signal.signal(number, signal.SIG_IGN)
    watch(int(sys.argv[1]))
