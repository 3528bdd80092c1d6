"""Child processes with a hard time limit for graders that may hang, crash or eat memory."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from grpo_lightning.rewards.runtime.process_tree import VARIABLE, end_descendants, end_tree

START_LIMIT = 120.0
"""Seconds that a child may take to import what it needs, on a busy machine."""
GRACE = 1.0
"""Seconds past the time limit before a child that did not stop by itself is killed."""


class WorkerError(RuntimeError):
    """A request whose child process ran out of time or died."""


class WorkerStartError(RuntimeError):
    """A child that could not take up its work; the text is its own."""


@dataclass
class WorkerPool:
    """Runs requests in child processes; one that exceeds the limit is killed and replaced.

    What a request has started ends with its child. Works from any thread, from several at once (no signals in this process), and is safe beside CUDA and threads
    (children are executed afresh, not forked). A request that hangs holds one child and its caller; all others go on.
    Children start with the first requests and end with ``close`` or with this process.

    Args:
        script: Run as ``python -P script FD SECONDS BYTES``; sends ``"ready"``, then one reply per request. If it cannot
            work it sends ``("failed", why)`` and ends.
        size: Number of children.
        time_limit: Wall-clock seconds per request.
        memory_bytes: Address space that a child may use.
        greeting: Sent to each child before it says that it is ready; None for scripts that expect none.
        work: What the children do, for errors.
        environment: Variables that they have besides those of this process.
    """

    script: Path
    size: int = 2
    time_limit: float = 5.0
    memory_bytes: int = 4 * 2**30
    greeting: Any = None
    work: str = "grading"
    environment: Mapping[str, str] = field(default_factory=dict)
    _idle: list[Worker] = field(default_factory=list, init=False, repr=False, compare=False)
    _all: list[Worker] = field(default_factory=list, init=False, repr=False, compare=False)
    _starting: int = field(default=0, init=False, repr=False, compare=False)
    _changed: Any = field(default_factory=threading.Condition, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        limits = (self.size, self.time_limit, self.memory_bytes)
        return type(self), (self.script, *limits, self.greeting, self.work, self.environment)

    def call(self, request: Any) -> Any:
        """The child's reply, as soon as a child is free for it.

        Raises:
            WorkerError: If the child ran out of time, or died.
            WorkerStartError: If the script says why it cannot work.
            RuntimeError: If the script cannot be started.
        """
        worker = self.take()
        reply = self.ask(worker, request)
        self.give_back(worker)
        return reply

    def ask(self, worker: Worker, request: Any) -> Any:
        """The reply of a child that was taken; a child that gives none is killed, and is not to be given back.

        Raises:
            WorkerError: As ``call``.
        """
        try:
            return worker.ask(request, self.time_limit + GRACE)
        except BaseException as error:  # also Ctrl-C: a reply still on the way would answer the next request
            self.drop(worker)
            if isinstance(error, TimeoutError):
                raise WorkerError(f"the {self.work} process was killed after {self.time_limit:g} s") from error
            if isinstance(error, EOFError | OSError):
                raise WorkerError(f"the {self.work} process died (out of memory, or crashed)") from error
            raise

    def give_back(self, worker: Worker) -> None:
        """Others may take the child."""
        with self._changed:
            if worker in self._all:  # else the pool was closed
                self._idle.append(worker)
            self._changed.notify()

    def map(self, requests: Sequence[Any]) -> list[Any]:
        """One reply per request, in order; a ``WorkerError`` in place of a reply that never came."""
        if len(requests) < 2:
            return [self._call_or_error(request) for request in requests]
        with ThreadPoolExecutor(min(self.size, len(requests))) as threads:
            return list(threads.map(self._call_or_error, requests))

    def close(self) -> None:
        """Ends the children; the next request starts new ones."""
        with self._changed:
            self._idle.clear()
            workers, self._all = self._all, []
            self._changed.notify_all()
        for worker in workers:
            worker.kill()

    def _call_or_error(self, request: Any) -> Any:
        try:
            return self.call(request)
        except WorkerError as error:
            return error

    def take(self) -> Worker:
        """A child that answers nobody else until it is given back or dropped: for requests that build on each other.

        Waits where all are taken.

        Raises:
            WorkerStartError, RuntimeError: As ``call``.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._idle or len(self._all) + self._starting < self.size)
            while self._idle:
                worker = self._idle.pop()
                if worker.process.poll() is None:
                    return worker
                self._all.remove(worker)  # it died while idle, which is no request's fault
                worker.kill()  # what it left behind
            self._starting += 1
        started: list[Worker] = []
        try:
            started.append(Worker(self))
            return started[0]
        finally:
            with self._changed:
                self._starting -= 1
                self._all.extend(started)
                self._changed.notify()

    def drop(self, worker: Worker) -> None:
        """Kills a child that was taken."""
        worker.kill()
        with self._changed:
            if worker in self._all:
                self._all.remove(worker)
            self._changed.notify()


class Worker:
    """One child that has said that it is ready."""

    def __init__(self, pool: WorkerPool) -> None:
        self.pipe, theirs = Pipe()
        self._token = secrets.token_hex(16)
        limits = [str(theirs.fileno()), str(pool.time_limit), str(pool.memory_bytes)]
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(pool.script), *limits],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **pool.environment, VARIABLE: self._token},
            start_new_session=True,  # Ctrl-C is for the trainer
        )
        theirs.close()
        try:
            if pool.greeting is not None:
                self.pipe.send(pool.greeting)
            answer = self._receive(START_LIMIT)
        except (EOFError, OSError, TimeoutError) as error:
            self.kill()
            raise RuntimeError(
                f"{pool.script.name} did not start: exit code {self.process.returncode}, after at most "
                f"{START_LIMIT:g} s. Its own message is on stderr."
            ) from error
        except BaseException:
            self.kill()
            raise
        if isinstance(answer, tuple):  # ("failed", text)
            self.kill()
            raise WorkerStartError(answer[1])

    def ask(self, request: Any, seconds: float) -> Any:
        """Its reply, or a ``TimeoutError``."""
        self.pipe.send(request)
        return self._receive(seconds)

    def _receive(self, seconds: float) -> Any:
        if not self.pipe.poll(seconds):
            raise TimeoutError
        return self.pipe.recv()

    def kill(self) -> None:
        """Ends it, with all that it started."""
        if self.process.returncode is None:  # else its number may be another's by now
            end_tree(self.process.pid)
        self.process.kill()
        self.process.wait()
        end_descendants(self._token)
        self.pipe.close()
