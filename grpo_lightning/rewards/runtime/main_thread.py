"""Calls that only the main thread can make, made while it waits for the rewards of a step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

from grpo_lightning.concurrency.event_loop import fulfil
from grpo_lightning.rewards.base import RewardContractError


class MainThreadCalls:
    """A queue from the rewards' event loop to the thread that waits for them."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    async def run(self, reward: str, function: Callable[[], Any]) -> Any:
        """The result of a reward's call by whoever is or will be in ``serve_until``; cancelled before, it is not made.

        Raises:
            RewardContractError: If that is another thread than the main one.
        """

        def call() -> Any:
            if threading.current_thread() is not threading.main_thread():
                raise RewardContractError(
                    f"Reward '{reward}' needs the main thread, and this run waits for rewards in the thread "
                    f"{threading.current_thread().name}. Give the reward isolation: process, or run the training on the "
                    "main thread."
                )
            return function()

        future: Future[Any] = Future()
        self._waiting.put((future, call))
        return await asyncio.wrap_future(future)

    def serve_until(self, future: Future[Any], idle_limit: float) -> None:
        """Makes calls in this thread, one after the other as they were submitted, until the future is done.

        Args:
            future: What this thread waits for.
            idle_limit: Seconds without a call and without the future after which waiting makes no sense.

        Raises:
            TimeoutError: After that time.
            KeyboardInterrupt: If Ctrl-C came in a call.
        """
        idle_limit = min(idle_limit, threading.TIMEOUT_MAX)
        future.add_done_callback(lambda _: self._waiting.put(None))
        while not future.done():
            try:
                call = self._waiting.get(timeout=idle_limit)
            except Empty as error:
                raise TimeoutError from error
            if call is not None and isinstance(raised := fulfil(*call), KeyboardInterrupt):
                raise raised
