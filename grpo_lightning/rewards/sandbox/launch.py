"""Starts a confined process, waits for it by the trainer's own clock, and ends it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

SCRIPT = Path(__file__).with_name("child.py")
MAX_OUTPUT = 2**20
"""Bytes of output that are read, and that a program may write into one file times 16."""
START_LIMIT = 60.0
"""Seconds until a process must be ready, on a busy machine; they do not count as the program's."""


@dataclass(frozen=True)
class Limits:
    """What a program may use, and whether it may run where it cannot be confined."""

    seconds: float
    memory_bytes: int
    unsafe: bool = False
    landlock: int | None = None
    """The version of Landlock to use at most; None for the kernel's."""


class NotStarted(RuntimeError):
    """A confined process was not ready in time, or this kernel cannot confine it."""


class Child:
    """A process of ``child.py``, with an empty environment and a directory of its own.

    Args:
        role: What it does.
        request: What the role reads.
        limits: For all of it.
        workdir: An empty directory.
        pipes: File descriptors that it inherits.
        stdin, stdout: Files; nothing by default.
    """

    def __init__(
        self,
        role: str,
        request: dict[str, Any],
        limits: Limits,
        workdir: str,
        pipes: Sequence[int] = (),
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
    ) -> None:
        self._unsafe = limits.unsafe
        self._status, status = os.pipe()
        asked = {
            "role": role,
            "status": status,
            "keep": [status, *pipes],
            "seconds": limits.seconds,
            "memory": limits.memory_bytes,
            "file_size": 16 * MAX_OUTPUT,
            "unsafe": limits.unsafe,
            "landlock": limits.landlock,
            **request,
        }
        try:
            with tempfile.TemporaryFile() as file:
                file.write(json.dumps(asked).encode())
                file.seek(0)
                self.process = subprocess.Popen(
                    [sys.executable, "-I", str(SCRIPT), str(file.fileno())],
                    stdin=stdin or subprocess.DEVNULL,
                    stdout=stdout or subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[file.fileno(), *asked["keep"]],
                    cwd=workdir,
                    env={"PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                    start_new_session=True,
                )
        except BaseException:
            os.close(self._status)
            raise
        finally:
            os.close(status)

    def wait_until_ready(self) -> dict[str, Any]:
        """What the kernel confined; from here on the time is the program's.

        Raises:
            NotStarted: If the process is not ready in time, or not confined.
        """
        text = b""
        while not text.endswith(b"\n"):
            ready, _, _ = select.select([self._status], [], [], START_LIMIT)
            more = os.read(self._status, 65536) if ready else b""
            if not more:
                raise NotStarted(
                    f"a process for untrusted code was not ready within {START_LIMIT:g} s, or died at its start"
                )
            text += more
        confined: dict[str, Any] = json.loads(text)
        if confined["missing"] and not self._unsafe:
            raise NotStarted(f"this kernel does not confine programs: {confined['missing']}")
        return confined

    def wait(self, seconds: float) -> int | None:
        """The exit status, or None where it still runs after that time."""
        descriptor = os.pidfd_open(self.process.pid)
        try:
            ended, _, _ = select.select([descriptor], [], [], max(0.0, seconds))
        finally:
            os.close(descriptor)
        if not ended:
            return None
        self._end_group()
        return self.process.wait()

    def end(self) -> None:
        """Kills what is left of it."""
        if self.process.returncode is None:
            self._end_group()
            self.process.kill()
            self.process.wait()
        os.close(self._status)

    def _end_group(self) -> None:
        """Before the process is waited for: its number, which is the group's, could be another's afterwards."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
