"""Child processes with a hard time limit for graders that may hang, crash or eat memory."""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from grpo_lightning.concurrency.process_tree import VARIABLE, end_descendants, end_tree

SCRIPT = Path(__file__).with_name("worker.py")
START_LIMIT = 120.0
"""Seconds that a child may take to import what it needs, on a busy machine."""
GRACE = 1.0
"""Seconds past the time limit before a child that did not stop by itself is killed."""


class WorkerError(RuntimeError):
    """A request whose child process ran out of time, died, or was ended with its pool."""


class UnsentReplyError(RuntimeError):
    """A reply that cannot leave its child process, which goes on; the text says why."""


class WorkerStartError(RuntimeError):
    """A child that could not take up its work; the text is its own."""


@dataclass
class WorkerPool:
    """Answers requests in child processes; one that exceeds the limit is killed and replaced.

    What a request has started ends with its child. Works from any thread, from several at once (no signals in this process),
    and is safe beside CUDA and threads (children are executed afresh, not forked). A request that hangs holds one child and
    its caller; all others go on. Children start with the first requests and end with ``close`` or with this process.

    Args:
        make: Called once in each child, and gives the function that answers there. Sent by pickle, so it must be of a module
            that can be imported. Or a file that defines ``answer``, for children that do without this package.
        size: Number of children.
        time_limit: Wall-clock seconds per request.
        memory_bytes: Address space that a child may use.
        work: What the children do, for errors.
        environment: Variables that they have besides those of this process.

    Raises:
        Exception: Whatever pickle makes of ``make``.
    """

    make: Callable[[], Callable[[Any], Any]] | Path
    size: int = 2
    time_limit: float = 5.0
    memory_bytes: int = 4 * 2**30
    work: str = "grading"
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sent = str(self.make) if isinstance(self.make, Path) else pickle.dumps(self.make)
        self._free = threading.Semaphore(self.size)
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._all: list[Worker] = []
        self._closings = 0

    def __reduce__(self) -> tuple[Any, ...]:
        limits = (self.size, self.time_limit, self.memory_bytes)
        return type(self), (self.make, *limits, self.work, self.environment)

    def call(self, request: Any) -> Any:
        """The child's reply, as soon as a child is free for it.

        Raises:
            WorkerError: If the child ran out of time, or died, or the pool was closed meanwhile.
            UnsentReplyError: If pickle cannot send the reply.
            WorkerStartError: If its work cannot be imported there.
            RuntimeError: If no child can be started.
        """
        worker = self.take()
        try:
            return self.ask(worker, request)
        finally:
            self.give_back(worker)

    def take(self) -> Worker:
        """A child that answers nobody else until it is given back or dropped: for requests that build on each other.

        Waits where all are taken.

        Raises:
            WorkerStartError, RuntimeError: As ``call``.
            WorkerError: If the pool was closed meanwhile.
        """
        closings = self._closings
        self._free.acquire()
        try:
            while worker := self._any_idle():
                if worker.process.poll() is None and self._begin_turn(worker):
                    return worker
                self._forget(worker)  # it died while idle, which is no request's fault, or the pool was closed
            with self._lock:
                if closings != self._closings:
                    raise self._closed()
                worker = Worker(self)
                self._all.append(worker)
        except BaseException:
            self._free.release()
            raise
        with self._dropped_at_errors(worker):
            worker.begin(self.sent)
        return worker

    def ask(self, worker: Worker, request: Any) -> Any:
        """The reply of a child that was taken; a child that gives none is killed, and nobody else gets it.

        Raises:
            WorkerError, UnsentReplyError: As ``call``.
        """
        with self._dropped_at_errors(worker):
            try:
                kind, content = worker.ask(request, self.time_limit + GRACE)
            except TimeoutError as error:
                raise WorkerError(f"the {self.work} process was killed after {self.time_limit:g} s") from error
            except (EOFError, OSError) as error:
                raise WorkerError(f"the {self.work} process died (out of memory, or crashed)") from error
        if kind == "unsent":
            raise UnsentReplyError(content)
        return content

    def give_back(self, worker: Worker) -> None:
        """Others may take the child."""
        self._end_turn(worker, is_idle=True)

    def drop(self, worker: Worker) -> None:
        """Kills a child that was taken."""
        self._forget(worker)
        self._end_turn(worker)

    def close(self) -> None:
        """Ends the children, those that are taken or being started too; only later requests start new ones."""
        with self._lock:
            self._closings += 1
            self._idle.clear()
            workers, self._all = self._all, []
        for worker in workers:
            worker.kill()
            self._end_turn(worker)

    @contextlib.contextmanager
    def _dropped_at_errors(self, worker: Worker) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # also Ctrl-C: a reply still on the way would answer the next request
            is_closed = worker not in self._all
            self.drop(worker)
            if is_closed and isinstance(error, RuntimeError):
                raise self._closed() from error
            raise

    def _closed(self) -> WorkerError:
        return WorkerError(f"the {self.work} processes were ended before the answer: their pool was closed")

    def _any_idle(self) -> Worker | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _begin_turn(self, worker: Worker) -> bool:
        with self._lock:
            worker.is_taken = worker in self._all
            return worker.is_taken

    def _end_turn(self, worker: Worker, is_idle: bool = False) -> None:
        with self._lock:
            was_taken, worker.is_taken = worker.is_taken, False
            if was_taken and is_idle and worker in self._all:
                self._idle.append(worker)
        if was_taken:  # one that was dropped, or whose pool was closed, may still be given back
            self._free.release()

    def _forget(self, worker: Worker) -> None:
        worker.kill()
        with self._lock:
            if worker in self._all:
                self._all.remove(worker)


class Worker:
    """One child, which answers once it has begun."""

    def __init__(self, pool: WorkerPool) -> None:
        self.is_taken = True
        self._ending = threading.Lock()
        self.pipe, theirs = Pipe()
        self._work = pool.work
        self._token = secrets.token_hex(16)
        limits = [str(theirs.fileno()), str(pool.time_limit), str(pool.memory_bytes)]
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(SCRIPT), *limits],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **pool.environment, VARIABLE: self._token},
            start_new_session=True,  # Ctrl-C is for the trainer
        )
        theirs.close()

    def begin(self, sent: str | bytes) -> None:
        """Has it take up its work.

        Raises:
            WorkerStartError: With its own text, if it cannot.
            RuntimeError: If it says nothing.
        """
        try:
            kind, content = self.ask((sys.path, sent), START_LIMIT)
        except (EOFError, OSError) as error:
            self.kill()
            raise RuntimeError(
                f"a {self._work} process did not start: exit code {self.process.returncode}, after at most "
                f"{START_LIMIT:g} s. Its own message is on stderr."
            ) from error
        if kind == "failed":
            raise WorkerStartError(content)

    def ask(self, request: Any, seconds: float) -> tuple[str, Any]:
        """What it says, and of which kind that is.

        Raises:
            TimeoutError: If it has given none after so many seconds.
        """
        self.pipe.send(request)
        if not self.pipe.poll(seconds):
            raise TimeoutError
        said: tuple[str, Any] = self.pipe.recv()
        return said

    def kill(self) -> None:
        """Ends it, with all that it started; from any thread, and more than once."""
        with self._ending:
            if self.process.returncode is None:  # else its number may be another's by now
                end_tree(self.process.pid)
            self.process.kill()
            self.process.wait()
            end_descendants(self._token)  # and the pipe closes with this object: another thread may be reading from it
