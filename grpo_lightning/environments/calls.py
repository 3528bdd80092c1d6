"""One call of users' code: beside the event loop, under a deadline, its prints kept, its exceptions explained."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from grpo_lightning.concurrency.event_loop import EventLoopThread, ends_unheard, in_thread
from grpo_lightning.concurrency.tracebacks import traceback_of
from grpo_lightning.environments.episode import EnvironmentContractError, EnvironmentFault, RaisedFault, ToolMistake
from grpo_lightning.environments.printed import Tail, captured
from grpo_lightning.environments.slots import CallSlots

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
ANSWERS = 1.0
"""Seconds in which the loop of asynchronous calls must answer, or a call blocks it."""


class Calls:
    """Makes the calls of a run.

    Args:
        deadline: Seconds for each call, from its start.
    """

    def __init__(self, deadline: float) -> None:
        if not deadline > 0:
            raise EnvironmentContractError(
                f"A call's deadline of {deadline} seconds leaves no time for it. Give more than 0."
            )
        self.deadline = deadline
        self.faults: Counter[str] = Counter(time_outs=0, exceptions=0, abandoned=0)
        self._loop = EventLoopThread()

    async def __call__(
        self, start: Callable[[], Any], finish: Callable[[Any], T], what: str, slots: CallSlots | None = None
    ) -> T:
        """What ``finish`` makes of what ``start`` returned.

        Both run in a thread. Where ``start`` gives an awaitable, that is awaited on a loop of its own, the same for
        all calls of a run, so that sessions can be kept.

        Args:
            start: Calls the user's code.
            finish: Turns its answer into ours: in the thread as well, since the answer may be large.
            what: ``Class.method``, for errors.
            slots: Of code that must not run in several threads. A call that is given up makes room for the next one.

        Raises:
            EnvironmentFault: If it raised or took too long.
            ToolMistake, EnvironmentContractError: As they were raised.
        """
        async with (slots or CallSlots(0)).slot():
            return await self._within_deadline(start, finish, what)

    async def _within_deadline(self, start: Callable[[], Any], finish: Callable[[Any], T], what: str) -> T:
        tail = Tail()
        task = asyncio.ensure_future(self._both(start, finish, tail))
        ends_unheard(task)
        try:
            done, _ = await asyncio.wait([task], timeout=self.deadline)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if tail.text:
            _LOG.debug("%s printed: %s", what, tail.text)
        if not done:
            task.cancel()
            self.faults["time_outs"] += 1
            raise EnvironmentFault(f"{what} took more than {self.deadline:g} s and was given up.{_printed(tail)}")
        try:
            return task.result()
        except (EnvironmentFault, EnvironmentContractError, ToolMistake):
            raise
        except Exception as error:
            self.faults["exceptions"] += 1
            said = f"{what} raised:\n{traceback_of(error)}{_way_out(error)}{_printed(tail)}"
            raise RaisedFault(said, str(error)) from error

    async def _both(self, start: Callable[[], Any], finish: Callable[[Any], T], tail: Tail) -> T:
        ended = False

        def work() -> Any:
            nonlocal ended
            try:
                with captured(tail):
                    raw = start()
                    return (raw, True) if inspect.isawaitable(raw) else (finish(raw), False)
            except SystemExit as error:  # a fault of the tool, not the end of the run
                raise RuntimeError(f"it ended with {error!r}") from error
            finally:
                ended = True
                if given_up:
                    self.faults["abandoned"] -= 1

        async def rest(raw: Awaitable[Any]) -> T:
            try:
                with captured(tail):
                    return finish(await raw)
            except Exception:
                raise
            except BaseException as error:  # SystemExit and the like would end the loop of all calls
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise  # ours, at the deadline; a tool that raises it itself has failed now
                raise RuntimeError(f"it ended with {error!r}") from error

        given_up = False
        try:
            result, is_awaitable = await in_thread(work)
        except asyncio.CancelledError:
            if not ended:  # it cannot be stopped: its thread stays until the call ends by itself
                given_up = True
                self.faults["abandoned"] += 1
            raise
        return await self._on_loop(rest(result)) if is_awaitable else result

    async def _on_loop(self, coroutine: Any) -> Any:
        future = self._loop.start(coroutine)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._leave_blocked_loop()
            raise

    def _leave_blocked_loop(self) -> None:
        """Later calls get a new loop where something blocks this one, such as ``time.sleep`` in a coroutine."""
        loop = self._loop

        async def answer() -> None:
            pass

        def check() -> None:
            try:
                loop.start(answer()).result(ANSWERS)
            except TimeoutError:
                if self._loop is loop:
                    self._loop = EventLoopThread()
                    self.faults["abandoned"] += 1

        threading.Thread(target=check, name="environments", daemon=True).start()

    def close(self) -> None:
        """Cancels what still runs on the loop and ends it."""
        self._loop.close()


def _printed(tail: Tail) -> str:
    return f"\nIt printed:\n{tail.text}" if tail.text else ""


NOT_IN_A_THREAD = {
    "signal only works in main thread": "Calls run in threads. As a method of a class with isolation = 'process' it has a main "
    "thread to itself, with its signals.",
    "There is no current event loop": "Calls run in threads, which have no event loop. Make it `async def` and await there, or use "
    "asyncio.run.",
}
"""What TRL's calls, in the main thread, may do and ours may not: the start of the error, and the way out."""


def _way_out(error: Exception) -> str:
    return next((f"\n{way}" for start, way in NOT_IN_A_THREAD.items() if str(error).startswith(start)), "")
