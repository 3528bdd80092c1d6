"""Child process that ends its parent where a reward holds the interpreter's lock for good.

Run as a script, ``python lock_watch_process.py PARENT``, with lines of JSON on standard input: ``{}`` once a second,
``{"begin": id, "reward": name, "rows": n, "thread": native id, "seconds": limit}`` and ``{"end": id}``. It ends with its
parent. Nothing but the standard library is imported, so that it starts in a few hundredths of a second.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.5


def watch(parent: int) -> None:
    """Reads until the other end is closed or the parent is gone; kills it after a silence that a call may not last."""
    calls: dict[int, dict[str, Any]] = {}
    rest, heard = b"", time.monotonic()
    os.set_blocking(0, False)
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)  # rather than being woken by every call: the writers would pay for it
        data = everything()
        if data is None:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            note(json.loads(line), calls)
        if data or state(parent) in "Tt":  # stopped by Ctrl-Z or a debugger, nobody is heard
            heard = time.monotonic()
        silence = time.monotonic() - heard
        if calls and silence > min(call["seconds"] for call in calls.values()):
            print(message(list(calls.values()), parent, silence), file=sys.stderr, flush=True)
            os.kill(parent, signal.SIGKILL)
            return


def everything() -> bytes | None:
    """What has been written since; None where the other end is closed."""
    data = b""
    while True:
        try:
            part = os.read(0, 65536)
        except BlockingIOError:
            return data
        if not part:
            return None
        data += part


def note(line: dict[str, Any], calls: dict[int, dict[str, Any]]) -> None:
    """Takes a call in or out."""
    if "begin" in line:
        calls[line["begin"]] = line
    elif "end" in line:
        calls.pop(line["end"], None)


def message(calls: list[dict[str, Any]], parent: int, silence: float) -> str:
    """What is said before the run is killed: of several calls, those whose thread is at work."""
    busy = [call for call in calls if state(parent, call["thread"]) == "R"] or calls
    named = " or ".join(dict.fromkeys(f"'{call['reward']}'" for call in busy))
    return (
        f"Reward {named}, called on {max(call['rows'] for call in busy)} completions, has let nothing else in this process run "
        f"for {silence:.0f} s: a regular expression that backtracks, or C code that keeps Python's interpreter lock. No time "
        "limit can end such a call in a thread, so the run is killed. Give the reward isolation: process, where the call "
        "is killed at its time limit and its completions count as None; then go on with --ckpt_path last."
    )


def state(process: int, thread: int | None = None) -> str:
    """The kernel's letter for what a thread does (R: runs, T: stopped); "?" where that is not known."""
    try:
        return Path(f"/proc/{process}/task/{thread or process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "?"


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # for the trainer, with which this process ends
        signal.signal(number, signal.SIG_IGN)
    watch(int(sys.argv[1]))
