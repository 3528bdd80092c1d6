"""One call of one reward in this process: guarded, limited in time, its answer checked."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grpo_lightning.concurrency.event_loop import ends_unheard
from grpo_lightning.concurrency.tracebacks import as_exception
from grpo_lightning.rewards.base import BaseRewardFunction, RewardContractError
from grpo_lightning.rewards.runtime.answer_checks import checked_values
from grpo_lightning.rewards.runtime.call_rows import CallRows, prepare_call
from grpo_lightning.rewards.runtime.outcome import CallTimeoutError, Outcome
from grpo_lightning.rewards.runtime.signal_probe import SignalProbe

if TYPE_CHECKING:  # a reward's process reads this file, and does without torch
    from grpo_lightning.rewards.runtime.call_guard import CallGuard

Place = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Calls a function somewhere, and gives what it returns to the rewards' event loop."""


class MainThreadNeededError(Exception):
    """A call in another thread that asked for what Python gives to the main thread alone; what it gave is worthless."""


@dataclass
class WatchedCall:
    """A call that a guard surrounds and probes listen to, on whichever thread it is made."""

    reward: BaseRewardFunction
    arguments: dict[str, Any]
    count: int
    """Completions in it."""
    time_limit: float
    guard: CallGuard
    made: SignalProbe = field(default_factory=SignalProbe)
    """Of what is called where ``place`` makes it, which another place may help."""
    awaited: SignalProbe = field(default_factory=SignalProbe)
    """Of what is awaited, which is always done on this loop."""
    started: float = 0.0

    async def answer(self, place: Place, can_end: bool) -> list[float]:
        """The checked answer; of an asynchronous reward made on this loop, else where ``place`` does it.

        What is made may have to be waited for still. That is done on this loop, where it ends at the limit in any case.

        Raises:
            CallTimeoutError: If it takes too long; without ``can_end`` what ``place`` makes has ended by then.
        """
        self.started = time.perf_counter()
        goes_on = can_end and not self.reward.is_async
        result = await _within(self.time_limit if can_end else None, lambda: self._begun(place), self._late(goes_on))
        if inspect.isawaitable(result):
            result = await _within(self._left(), lambda: self._awaited(result), self._late())
        if not can_end and self._left() < 0:
            raise self._late()
        return result

    async def _begun(self, place: Place) -> Any:
        # An async def gives a coroutine, which has done nothing yet.
        return self.reward(**self.arguments) if self.reward.is_async else await place(self._made)

    def _made(self) -> Any:
        self.started = time.perf_counter()
        with self.made, self.guard.call(self.reward.name, self.count, self.time_limit):
            result = self.reward(**self.arguments)
            # What it returned may be its own code, too: an object's __float__, a tensor still to be computed.
            return result if inspect.isawaitable(result) else checked_values(result, self.count, self.reward.name)

    async def _awaited(self, result: Awaitable[Any]) -> list[float]:
        with self.awaited, self.guard.call(self.reward.name, self.count, self.time_limit, owns_thread=False):
            return checked_values(await result, self.count, self.reward.name)

    def _left(self) -> float:
        return self.started + self.time_limit - time.perf_counter()

    def _late(self, goes_on: bool = False) -> CallTimeoutError:
        stays = " Its thread cannot be stopped and goes on in the background; isolation: process makes it killable."
        return CallTimeoutError(
            f"Reward '{self.reward.name}' took more than {self.time_limit:g} s for one call and was given up."
            f"{stays if goes_on else ''} Raise model.reward_runtime.time_limit or the reward's call_time_limit if it needs "
            "longer."
        )


async def call_reward(
    reward: BaseRewardFunction, rows: CallRows, time_limit: float, guard: CallGuard, place: Place, can_end: bool = True
) -> Outcome:
    """Calls the reward once.

    Args:
        reward: To be called.
        rows: What it sees.
        time_limit: Seconds from the start of the call.
        guard: Entered where the call is made.
        place: Makes a synchronous call.
        can_end: Whether a call may be left behind there at its limit; else the limit is looked at when it has ended. What it
            gives to be awaited ends at the limit either way.

    Raises:
        RewardContractError: If a column is missing, the answer is malformed, or what it gives to be awaited asked for signals.
        CallTimeoutError: If the call takes longer than ``time_limit`` seconds.
        MainThreadNeededError: If it asked for signals outside of the main thread, whatever it gave or raised then.
        Exception: Whatever the reward raises.
    """
    arguments, outcome = prepare_call(reward, rows)
    call = WatchedCall(reward, arguments, len(rows), time_limit, guard)
    try:
        outcome.rewards = await call.answer(place, can_end)
    except Exception:
        if not call.made.asked and not call.awaited.asked:
            raise
    if call.made.asked:
        raise MainThreadNeededError
    if call.awaited.asked:
        raise RewardContractError(_no_signals(reward))
    outcome.seconds.append(time.perf_counter() - call.started)
    return outcome


async def _within(seconds: float | None, call: Callable[[], Awaitable[Any]], late: Exception) -> Any:
    """What ``call`` gives; after so many seconds it is cancelled, not waited for, and ``late`` is raised."""
    task = asyncio.ensure_future(_contained(call))
    ends_unheard(task)
    try:
        done, _ = await asyncio.wait([task], timeout=seconds)
    finally:
        task.cancel()  # of one that is done nothing happens
    if not done:
        raise late
    return task.result()


async def _contained(call: Callable[[], Awaitable[Any]]) -> Any:
    """Turns what would end the loop of all rewards into an ordinary exception of this one."""
    try:
        return await call()
    except Exception:
        raise
    except BaseException as error:
        raise as_exception(error) from error


def _no_signals(reward: BaseRewardFunction) -> str:
    return (
        f"Reward '{reward.name}' asks for a signal (a time limit by signal.alarm, as math_verify has) in a coroutine, which runs "
        "on the rewards' event loop; Python gives signals to the main thread only, so that its scores would be those of calls "
        "that failed. Write it as a plain def that gives its scores and no coroutine, or give it isolation: process."
    )
