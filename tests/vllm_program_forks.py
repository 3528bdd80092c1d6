"""Programs with vLLM that tests start are forks of one process that has imported it, and so are the engines of servers.

All else is as ever: the command line, the environment, the session, the sockets, the two processes, their end. The server of
test_vllm_server.py is started as people start one, by interpreters that import everything themselves.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from functools import cache
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from fork_server import CONTEXT
from forked_python import ForkedPython, be, program_of, write_into
from frozen_imports import freeze_imports
from vllm_cases import eager_torch

from grpo_lightning.generation.vllm.serving.process import server_environment

IMPORTED = (
    "vllm.entrypoints.llm",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.async_llm",
    "grpo_lightning.commands.serve",
)


class VLLMFork:
    """What ``subprocess.Popen(command, **options)`` gives, of a process that had imported vLLM, as it is, before it started."""

    def __init__(self, command: list[str], **options: Any) -> None:
        self.args = command
        self.stdin = None
        self.returncode: int | None = None
        output = options.get("stdout")
        order = {
            "command": command,
            "environment": dict(options.get("env") or os.environ),
            "folder": str(options.get("cwd") or os.getcwd()),
            "output": os.devnull if output is None else output.name,
            "has_own_session": options.get("start_new_session", False),
        }
        self.pid: int = _asked("start", order)

    def poll(self) -> int | None:
        """The exit status, or minus a signal, once it has ended."""
        if self.returncode is None:
            self.returncode = _asked("status", self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The same, waiting for it."""
        limit = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if limit is not None and time.monotonic() > limit:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


@cache
def _parent() -> tuple[Connection, threading.Lock]:
    """The way to the process of which all are forks; it ends with this one."""
    ours, theirs = multiprocessing.Pipe()
    CONTEXT.Process(target=_import_and_fork, args=(theirs,)).start()
    theirs.close()
    atexit.register(ours.close)  # before multiprocessing waits for its end
    return ours, threading.Lock()


def _asked(word: str, what: Any) -> Any:
    connection, lock = _parent()
    with lock:
        connection.send((word, what))
        return connection.recv()


def import_vllm() -> None:
    """And what a server of it needs; from here on this process can be forked into one."""
    os.environ.update(server_environment())
    torch.set_num_threads(1)
    for name in IMPORTED:
        import_module(name)
    # On a CPU vLLM starts an engine by another interpreter, whatever it is told; on other devices as it is told.
    import_module("vllm.envs").environment_variables["VLLM_WORKER_MULTIPROC_METHOD"] = lambda: "fork"
    os.register_at_fork(
        after_in_child=lambda: signal.set_wakeup_fd(-1)
    )  # what ends an engine is no signal to its server
    freeze_imports()


def _import_and_fork(connection: Connection) -> None:
    ended: dict[int, int] = {}
    with eager_torch():
        import_vllm()
        with contextlib.suppress(EOFError):
            while True:
                word, what = connection.recv()
                connection.send(_fork(**what) if word == "start" else _status(what, ended))


def _fork(command: list[str], environment: dict[str, str], folder: str, output: str, has_own_session: bool) -> int:
    pid = os.fork()
    if pid:
        return pid
    if has_own_session:
        os.setsid()
    write_into(Path(output))
    os.chdir(folder)
    subprocess.Popen = ForkedPython  # type: ignore[misc]  # `grpo_lightning serve` starts vLLM's server
    program = program_of(command)
    assert program is not None
    be(program, environment)
    raise AssertionError("a process ends with its program")


def _status(pid: int, ended: dict[int, int]) -> int | None:
    if pid not in ended:
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found:
            return None
        ended[pid] = os.waitstatus_to_exitcode(status)
    return ended[pid]
