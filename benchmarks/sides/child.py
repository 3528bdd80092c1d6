"""Programs that a benchmark starts: they end with it, since what they leave on a GPU disturbs whatever comes next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def environment(**further: str) -> dict[str, str]:
    """Variables of this process for another, which finds the project, its benchmarks and what was found on PYTHONPATH."""
    paths = [str(ROOT), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | further


def start(command: list[str], **options: Any) -> subprocess.Popen[Any]:
    """Starts a program in a session of its own, for ``ended``.

    Args:
        command: It and its arguments.
        options: Of ``subprocess.Popen``.
    """
    signal.signal(signal.SIGTERM, _leave)
    return subprocess.Popen(command, start_new_session=True, **options)


@contextmanager
def ended(processes: Sequence[subprocess.Popen[Any]]) -> Iterator[None]:
    """Afterwards, and at SIGTERM as `timeout` sends it, ends the sessions of ``start``, also of those that are added meanwhile."""
    try:
        yield
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(command: list[str], seconds: float | None = None, **options: Any) -> int:
    """Runs a program with all its ranks until its own end; its exit status.

    Args:
        command: It and its arguments.
        seconds: After which it is ended; None for never.
        options: Of ``subprocess.Popen``.

    Raises:
        subprocess.TimeoutExpired: If it was ended.
    """
    process = start(command, **options)
    with ended([process]):
        return process.wait(seconds)


def _leave(number: int, frame: Any) -> None:
    sys.exit(128 + number)
