"""Turns of calls that must not run at the same time, whatever event loops they come from."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager


class CallSlots:
    """Lets ``size`` blocks in at once, first come, first served. 0 lets all in.

    Not ``asyncio.Semaphore``, which belongs to one loop: evaluation and async rollouts may run in two.
    """

    def __init__(self, size: int) -> None:
        self.size, self._inside = size, 0
        self._lock, self._waiting = threading.Lock(), deque[Future[None]]()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Inside of it the block may run."""
        mine: Future[None] = Future()
        with self._lock:
            if not self.size or self._inside < self.size:
                self._inside += 1
                mine.set_result(None)
            else:
                self._waiting.append(mine)
        try:
            await asyncio.wrap_future(mine)
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # it came with the cancellation
                self._next()
            raise
        try:
            yield
        finally:
            self._next()

    def _next(self) -> None:
        """Hands the slot to the first that still waits."""
        with self._lock:
            while self._waiting:
                if self._waiting[0].set_running_or_notify_cancel():
                    self._waiting.popleft().set_result(None)
                    return
                self._waiting.popleft()
            self._inside -= 1
