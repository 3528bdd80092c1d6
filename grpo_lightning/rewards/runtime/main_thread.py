"""Calls that only the main thread can make, made while it waits for the rewards of a step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from grpo_lightning.rewards.base import RewardContractError
from grpo_lightning.rewards.runtime.tracebacks import as_exception


@dataclass
class MainThreadCall:
    """A call that waits for the main thread."""

    reward: str
    """Name, for the error."""
    function: Callable[[], Any]
    started: Future[None] = field(default_factory=Future)
    """Done when the call begins; cancelled, the call never does."""
    result: Future[Any] = field(default_factory=Future)

    def make(self) -> None:
        """Makes the call in this thread.

        Raises:
            KeyboardInterrupt: If Ctrl-C came meanwhile.
        """
        if not self.started.set_running_or_notify_cancel():
            return
        self.result.set_running_or_notify_cancel()
        self.started.set_result(None)
        try:
            if threading.current_thread() is not threading.main_thread():
                raise RewardContractError(
                    f"Reward '{self.reward}' needs the main thread, and this run waits for rewards in the thread "
                    f"{threading.current_thread().name}. Give the reward isolation: process, or run the training on the "
                    "main thread."
                )
            self.result.set_result(self.function())
        except BaseException as error:
            self.result.set_exception(as_exception(error))
            if isinstance(error, KeyboardInterrupt):
                raise


class MainThreadCalls:
    """A queue from the rewards' event loop to the thread that waits for them."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[MainThreadCall | None] = SimpleQueue()

    def submit(self, reward: str, function: Callable[[], Any]) -> MainThreadCall:
        """Has ``function`` called by whoever is or will be in ``serve_until``; from any thread."""
        call = MainThreadCall(reward, function)
        self._waiting.put(call)
        return call

    def serve_until(self, future: Future[Any], idle_limit: float) -> None:
        """Makes calls in this thread, one after the other as they were submitted, until the future is done.

        Args:
            future: What this thread waits for.
            idle_limit: Seconds without a call and without the future after which waiting makes no sense.

        Raises:
            TimeoutError: After that time.
        """
        future.add_done_callback(lambda _: self._waiting.put(None))
        while not future.done():
            try:
                call = self._waiting.get(timeout=idle_limit)
            except Empty as error:
                raise TimeoutError from error
            if call is not None:
                call.make()
