"""One event loop in a thread of its own, for what waits: it outlives a step, so sessions can be kept open."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from grpo_lightning.concurrency.tracebacks import as_exception

T = TypeVar("T")


class EventLoopThread:
    """Started by the first ``start``; a process forked afterwards starts its own.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str = "rewards") -> None:
        self.name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name,)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs the coroutine; works whether or not the caller's thread runs a loop itself."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop, running."""
        if self._loop is None or self._pid != os.getpid():
            self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
            self._thread = threading.Thread(target=self._loop.run_forever, name=self.name, daemon=True)
            self._thread.start()
        return self._loop

    def close(self) -> None:
        """Cancels what still runs, stops the loop and its thread; a later ``start`` starts new ones."""
        if self._loop is not None and self._thread is not None and self._pid == os.getpid():
            asyncio.run_coroutine_threadsafe(_end(self._loop), self._loop)
            self._thread.join(timeout=5.0)  # a coroutine that blocks the loop must not keep the process from ending
            if not self._thread.is_alive():
                self._loop.close()
        self._loop = self._thread = None


async def _end(loop: asyncio.AbstractEventLoop) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.wait(others, timeout=2.0) if others else None
    await asyncio.sleep(0)  # connections that were closed let go of their sockets
    loop.stop()


def ends_unheard(task: asyncio.Future[Any]) -> None:
    """What the task raises is not logged by asyncio if nobody asks for it: it was given up, or its step was."""
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())


async def in_thread(function: Callable[[], T]) -> T:
    """The function's result from a daemon thread: if it hangs, neither the loop nor the process's exit waits."""
    future: Future[T] = Future()
    _THREADS.run(lambda: fulfil(future, function))
    return await asyncio.wrap_future(future)


def fulfil(future: Future[T], function: Callable[[], T]) -> BaseException | None:
    """Calls the function here and hands on what it gives or raises, unless the future was cancelled; what it raised."""
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(as_exception(error))
            return error
    return None


class _DaemonThreads:
    """Threads that are used again once their work is done; work never waits for a thread that hangs."""

    def __init__(self) -> None:
        self._lock, self._idle, self._waiting, self._pid = threading.Lock(), 0, SimpleQueue[Callable[[], object]](), 0

    def run(self, work: Callable[[], object]) -> None:
        with self._lock:
            if self._pid != os.getpid():  # threads do not survive a fork
                self._idle, self._waiting, self._pid = 0, SimpleQueue(), os.getpid()
            if self._idle:
                self._idle -= 1
                self._waiting.put(work)
                return
        threading.Thread(target=self._serve, args=(work, self._waiting), name="reward", daemon=True).start()

    def _serve(self, work: Callable[[], object], waiting: SimpleQueue[Callable[[], object]]) -> None:
        while True:
            work()
            with self._lock:
                self._idle += 1
            work = waiting.get()


_THREADS = _DaemonThreads()
