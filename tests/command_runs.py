"""Runs of the command line, each a process of its own as from a shell, without the seconds that imports take."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from fork_server import CONTEXT
from forked_python import ForkedPython, become, run_file, write_into

ROOT = Path(__file__).parents[1]
PLACES = [str(ROOT), str(Path(__file__).parent)]
_numbers = itertools.count()


class CommandRun:
    """``python -m grpo_lightning ARGUMENTS`` in a folder whose modules it can import.

    Args:
        folder: Where it works; its output goes into a file there.
        arguments: Of the command.
        script: A file to run in place of ``grpo_lightning``. The programs in Python that it starts are forks too.
        environment: Variables on top of this process's own.
    """

    def __init__(self, folder: Path, *arguments: str, script: Path | None = None, **environment: str) -> None:
        self._output = folder / f"output-{next(_numbers)}.txt"
        self._output.touch()
        self._process = CONTEXT.Process(target=_main, args=(folder, self._output, script, arguments, environment))
        self._process.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def is_alive(self) -> bool:
        """Until its end."""
        return self._process.is_alive()

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._output.read_text()

    def send_signal(self, number: int) -> None:
        """Such as SIGTERM; nothing where it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def finish(self) -> tuple[int, str]:
        """Its exit status, or minus a signal, and what it has written; waits for its end."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode, self.output

    def wait_for(self, path: Path) -> None:
        """Until the run has made a file; an end before that is an error."""
        while not path.exists():
            assert self._process.is_alive(), self.output
            time.sleep(0.02)


def run_command(folder: Path, *arguments: str, script: Path | None = None, **environment: str) -> tuple[int, str]:
    """Exit status and output of a whole run."""
    return CommandRun(folder, *arguments, script=script, **environment).finish()


def _main(
    folder: Path, output: Path, script: Path | None, arguments: tuple[str, ...], environment: Mapping[str, str]
) -> None:
    write_into(output)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a fork server's children ignore
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests are run under nohup
    torch.set_num_threads(1)
    os.environ.update({"PYTHONPATH": os.pathsep.join([str(folder), *PLACES]), "OMP_NUM_THREADS": "1"} | environment)
    sys.path[:0] = [str(folder), *PLACES]
    if "MAX_FILE_BYTES" in environment:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(environment["MAX_FILE_BYTES"]),) * 2)
    os.chdir(folder)
    become(lambda: _run(script, arguments))


def _run(script: Path | None, arguments: tuple[str, ...]) -> None:
    if script is not None:
        subprocess.Popen = ForkedPython  # type: ignore[misc]
        run_file(script, arguments)
        return
    sys.argv = ["grpo_lightning", *arguments]
    from grpo_lightning.__main__ import main

    main(list(arguments))
