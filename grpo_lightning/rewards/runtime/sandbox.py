"""Runs a program that is not trusted: a child process with limits, and nothing of the trainer's in it.

What is enforced, from strongest to weakest:

- Wall time, processor time, address space, file size and open files: by the kernel, always.
- Network, and processes left behind: by the kernel where user namespaces are allowed (``unshare``). Else Python's audit
  hook refuses sockets, other processes and foreign code; a program that is out to break Python itself could get past
  that, so the first use says so in the log.
- Environment: empty but for PATH and LANG; the working directory is a fresh one that is removed afterwards.
- Not enforced: files that the user may read or write. The verdict itself cannot be forged by leaving early (exit code
  0 is not enough), but tests run in the program's own interpreter: one that looks for them can change them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

DRIVER = Path(__file__).with_name("sandbox_driver.py")
MAX_OUTPUT = 2**20
"""Bytes of output that are read, and that a program may write into one file times 16."""
START_ALLOWANCE = 10.0
"""Wall-clock seconds beyond the limit, for interpreters that start late on a busy machine."""


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class RunResult:
    """How a program ended."""

    verdict: str
    """passed, failed (it raised), timeout, or died (exit before its end, out of memory, killed)."""
    output: str
    """What it printed, cut off at ``MAX_OUTPUT`` bytes."""


def run_program(code: str, test: str | None, stdin: str, limits: Limits) -> RunResult:
    """Runs ``code``, then ``test`` in the same namespace.

    Args:
        code: Python source.
        test: Python source that raises where the code is wrong; None where only the output counts.
        stdin: What the program reads.
        limits: Time and memory.
    """
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="grpo-sandbox-", ignore_cleanup_errors=True) as folder:
        verdict_path, input_path, output_path = (Path(folder, name) for name in ("verdict", "input", "output"))
        work = Path(folder, "work")
        work.mkdir()
        input_path.write_text(stdin, encoding="utf-8", errors="replace")
        with (
            verdict_path.open("w+b") as verdict_file,
            input_path.open("rb") as input_file,
            output_path.open("w+b") as output_file,
        ):
            process = subprocess.Popen(
                [*_namespaces(), sys.executable, "-I", str(DRIVER), str(verdict_file.fileno())],
                stdin=subprocess.PIPE,
                stdout=output_file,
                stderr=subprocess.DEVNULL,
                pass_fds=[verdict_file.fileno(), input_file.fileno()],
                cwd=work,
                env={"PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )
            request = {
                "code": code,
                "test": test,
                "token": token,
                "stdin": input_file.fileno(),
                "seconds": limits.seconds,
                "memory": limits.memory_bytes,
                "file_size": 16 * MAX_OUTPUT,
                "refuse": not _namespaces(),
            }
            timed_out = _finish(process, request, limits.seconds + START_ALLOWANCE)
            verdict_file.seek(0)
            verdict = verdict_file.read(1000).decode(errors="replace")
            output_file.seek(0)
            output = output_file.read(MAX_OUTPUT).decode(errors="replace")
    return RunResult(_verdict(verdict, token, timed_out or process.returncode in _CPU_LIMIT), output)


_CPU_LIMIT = (-signal.SIGXCPU, 128 + signal.SIGXCPU, -signal.SIGALRM, 128 + signal.SIGALRM)


def _verdict(written: str, token: str, timed_out: bool) -> str:
    for verdict in ("passed", "failed"):
        if written == f"{token} {verdict}":
            return verdict
    return "timeout" if timed_out else "died"


def _finish(process: subprocess.Popen[bytes], request: Mapping[str, object], seconds: float) -> bool:
    """Waits for the program's end, and ends what it left behind; True where it ran out of time."""
    try:
        process.communicate(json.dumps(request).encode(), timeout=seconds)
    except subprocess.TimeoutExpired:
        return True
    except BrokenPipeError:
        process.wait(seconds)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
    return False


@cache
def _namespaces() -> tuple[str, ...]:
    """The command that takes away the network and other processes, or nothing where the kernel does not allow it."""
    unshare = shutil.which("unshare")
    if unshare is not None:
        command = (unshare, "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if subprocess.run([*command, "true"], capture_output=True, timeout=20).returncode == 0:
                return command
    log.warning(
        "Code is run without a network namespace: this machine has no unshare, or does not allow user namespaces. "
        "Sockets and further processes are refused by Python only. Run the trainer in a container without network "
        "where completions are not trusted."
    )
    return ()
