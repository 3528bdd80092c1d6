"""One event loop in a thread of its own, for rewards that wait: it outlives a step, so sessions can be kept open."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class EventLoopThread:
    """Started by the first ``run``; a process forked afterwards starts its own."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result; works whether or not the caller's thread runs a loop itself."""
        if self._loop is None or self._pid != os.getpid():
            self._start()
        assert self._loop is not None
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C in the caller must not leave rewards running
            raise

    def close(self) -> None:
        """Stops the loop and its thread; a later ``run`` starts new ones."""
        if self._loop is not None and self._thread is not None and self._pid == os.getpid():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        self._loop = self._thread = None

    def _start(self) -> None:
        self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rewards", daemon=True)
        self._thread.start()


async def in_thread(function: Callable[[], T]) -> T:
    """The function's result from a daemon thread: if it hangs, neither the loop nor the process's exit waits."""
    future: Future[T] = Future()

    def work() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="reward", daemon=True).start()
    return await asyncio.wrap_future(future)
