"""Where each call of a reward is made, and how many are made at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from functools import partial

from grpo_lightning.concurrency.event_loop import EventLoopThread, in_thread
from grpo_lightning.rewards.base import BaseRewardFunction, written
from grpo_lightning.rewards.runtime.call_guard import CallGuard
from grpo_lightning.rewards.runtime.call_rows import CallRows
from grpo_lightning.rewards.runtime.main_thread import MainThreadCalls
from grpo_lightning.rewards.runtime.outcome import Outcome
from grpo_lightning.rewards.runtime.process_caller import ProcessCaller
from grpo_lightning.rewards.runtime.reward_call import MainThreadNeededError, call_reward
from grpo_lightning.rewards.runtime.settings import RewardRuntime
from grpo_lightning.rewards.runtime.thread_needs import main_thread_reason

log = logging.getLogger(__name__)

ASYNC_CALLS = 256
"""Calls of an asynchronous reward at the same time, where it does not say (``concurrency``)."""


class RewardCalls:
    """Makes one call of a reward: in a thread, in a process of its own, on the event loop or in the main thread.

    Args:
        rewards: All that may be called, with unique names.
        runtime: How many calls run at the same time, and for how long.
    """

    def __init__(self, rewards: Sequence[BaseRewardFunction], runtime: RewardRuntime) -> None:
        self.rewards, self.runtime = rewards, runtime
        self.loop = EventLoopThread()
        """Where calls are made and waited for."""
        self.main_thread = MainThreadCalls()
        self.guard = CallGuard()
        """Around each call in this process; knows the rank's device."""
        self._in_main: set[str] = set()
        self._processes: dict[str, ProcessCaller] = {}
        self._slots: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Semaphore] = {}
        for reward in rewards:
            if reason := _main_thread_reason(reward):
                self._take_to_main(reward, reason)

    async def __call__(self, reward: BaseRewardFunction, rows: CallRows) -> Outcome:
        """One call; the wait for a free slot does not count as its time."""
        if reward.name not in self._in_main:
            try:
                return await self._call_beside_training(reward, rows)
            except MainThreadNeededError:
                self._take_to_main(reward, "a call of it asked for a signal")
        place = partial(self.main_thread.run, reward.name)
        return await call_reward(reward, rows, self._limit(reward), self.guard, place, can_end=False)

    async def _call_beside_training(self, reward: BaseRewardFunction, rows: CallRows) -> Outcome:
        process = self._process(reward) if reward.isolation == "process" else None
        many = ASYNC_CALLS if reward.is_async else self.runtime.max_workers
        shared = contextlib.nullcontext() if reward.is_async else self._slot("", many)
        async with self._slot(reward.name, process.size if process else reward.concurrency or many), shared:
            if process is None:
                return await call_reward(reward, rows, self._limit(reward), self.guard, in_thread)
            started = time.perf_counter()
            outcome = await process(rows)
            outcome.seconds.append(time.perf_counter() - started)
            return outcome

    def _take_to_main(self, reward: BaseRewardFunction, reason: str) -> None:
        if reward.name not in self._in_main:
            self._in_main.add(reward.name)
            log.info(
                "Reward '%s' is called in the main thread, once all completions are there: %s, which works nowhere else. To "
                "overlap it with other work, give it isolation: process.",
                *(reward.name, reason),
            )

    def _process(self, reward: BaseRewardFunction) -> ProcessCaller:
        if reward.name not in self._processes:
            self._processes[reward.name] = ProcessCaller(reward, self._limit(reward), self.guard.device)
        return self._processes[reward.name]

    def _limit(self, reward: BaseRewardFunction) -> float:
        return reward.call_time_limit or self.runtime.time_limit

    def _slot(self, name: str, size: int) -> asyncio.Semaphore:
        return self._slots.setdefault((asyncio.get_running_loop(), name), asyncio.Semaphore(size))

    def repeats_by_row(self, reward: BaseRewardFunction) -> bool:
        """Whether a failed call of a reward may be repeated with one completion at a time."""
        return reward.scope == "completion" or (reward.scope == "batch" and self.runtime.repeat_by_row)

    def close(self) -> None:
        """Releases what the rewards hold, ends processes and the loop. Calls may be made again afterwards."""
        for caller in self._processes.values():
            caller.close()
        self._processes.clear()
        for reward in self.rewards:
            reward.close()
        self.loop.close()
        self.guard.watch.close()
        self._slots.clear()


def _main_thread_reason(reward: BaseRewardFunction) -> str:
    if reward.isolation == "main":
        return "it has isolation: main"
    if reward.isolation == "process" or reward.is_async:  # a process has a main thread; of async ones only calls tell
        return ""
    return main_thread_reason(written(reward))
