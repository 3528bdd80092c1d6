"""Child processes with a hard time limit for graders that may hang, crash or eat memory."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe, connection
from pathlib import Path
from typing import Any

START_LIMIT = 120.0
"""Seconds that a child may take to import what it needs, on a busy machine."""
GRACE = 1.0
"""Seconds past the time limit before a child that did not stop by itself is killed."""


class WorkerError(RuntimeError):
    """A request whose child process ran out of time or died."""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Any
    deadline: float
    request: int | None = None
    """Index of the request that it works on."""
    idle: bool = False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()


@dataclass
class WorkerPool:
    """Runs requests in child processes; one that exceeds the limit is killed and replaced.

    Works from any thread (no signals in this process) and is safe beside CUDA and threads (children are executed
    afresh, not forked). Children start with the first request and end with ``close`` or with this process.

    Args:
        script: Run as ``python -P script FD SECONDS BYTES``; sends ``"ready"``, then one reply per request.
        size: Number of children; a request that hangs occupies one and leaves the others working.
        time_limit: Wall-clock seconds per request.
        memory_bytes: Address space that a child may use.
    """

    script: Path
    size: int = 2
    time_limit: float = 5.0
    memory_bytes: int = 4 * 2**30
    _workers: list[_Worker] = field(default_factory=list, init=False, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.script, self.size, self.time_limit, self.memory_bytes)

    def map(self, requests: Sequence[Any]) -> list[Any]:
        """One reply per request, in order; a ``WorkerError`` in place of a reply that never came."""
        with self._lock:
            replies: list[Any] = [None] * len(requests)
            waiting = deque(range(len(requests)))
            try:
                self._drain(requests, waiting, replies)
            except BaseException:
                self._kill_all()  # replies still on the way would answer the next call's requests
                raise
            return replies

    def close(self) -> None:
        """Ends the children; the next request starts new ones."""
        with self._lock:
            self._kill_all()

    def _kill_all(self) -> None:
        while self._workers:
            self._workers.pop().kill()

    def _drain(self, requests: Sequence[Any], waiting: deque[int], replies: list[Any]) -> None:
        while waiting or any(worker.request is not None for worker in self._workers):
            while len(self._workers) < min(self.size, len(waiting) + self._busy()):
                self._workers.append(self._start())
            for worker in self._workers:
                if worker.idle and waiting:
                    self._assign(worker, waiting.popleft(), requests)
            active = [worker for worker in self._workers if not worker.idle]
            patience = max(0.0, min(worker.deadline for worker in active) - time.monotonic())
            ready = connection.wait([worker.pipe for worker in active], patience)
            for worker in active:
                if worker.pipe in ready:
                    self._receive(worker, replies)
                elif time.monotonic() > worker.deadline:
                    self._bury(worker, replies, f"killed after {self.time_limit:g} s")

    def _busy(self) -> int:
        return sum(worker.request is not None for worker in self._workers)

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        limits = [str(theirs.fileno()), str(self.time_limit), str(self.memory_bytes)]
        process = subprocess.Popen(
            [sys.executable, "-P", str(self.script), *limits],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the trainer
        )
        theirs.close()
        return _Worker(process, ours, deadline=time.monotonic() + START_LIMIT)

    def _assign(self, worker: _Worker, index: int, requests: Sequence[Any]) -> None:
        worker.idle, worker.request = False, index
        worker.deadline = time.monotonic() + self.time_limit + GRACE
        try:
            worker.pipe.send(requests[index])
        except BrokenPipeError:
            worker.deadline = time.monotonic()  # it died while idle; the next wait reads the end of its pipe

    def _receive(self, worker: _Worker, replies: list[Any]) -> None:
        try:
            reply = worker.pipe.recv()
        except (EOFError, OSError):
            self._bury(worker, replies, "died (out of memory, or crashed)")
            return
        if worker.request is not None:
            replies[worker.request] = reply
        worker.idle, worker.request = True, None

    def _bury(self, worker: _Worker, replies: list[Any], reason: str) -> None:
        self._workers.remove(worker)
        worker.kill()
        if worker.request is None:
            raise RuntimeError(
                f"{self.script.name} did not start: exit code {worker.process.returncode}, after at most "
                f"{START_LIMIT:g} s. Its own message is on stderr."
            )
        replies[worker.request] = WorkerError(f"the grading process {reason}")
