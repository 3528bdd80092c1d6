"""Where each call of a reward runs, and how many run at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from grpo_lightning.rewards.base import BaseRewardFunction
from grpo_lightning.rewards.runtime.call_guard import CallGuard
from grpo_lightning.rewards.runtime.event_loop import EventLoopThread
from grpo_lightning.rewards.runtime.main_thread_rewards import MainThreadRewards
from grpo_lightning.rewards.runtime.outcome import Outcome
from grpo_lightning.rewards.runtime.process_caller import ProcessCaller
from grpo_lightning.rewards.runtime.reward_call import CallRows, MainThreadNeededError, call_reward
from grpo_lightning.rewards.runtime.settings import RewardRuntime

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
        self.main_thread = MainThreadRewards(rewards)
        self.guard = CallGuard()
        """Around each call in this process; knows the rank's device."""
        self._processes: dict[str, ProcessCaller] = {}
        self._slots: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Semaphore] = {}

    async def __call__(self, reward: BaseRewardFunction, rows: CallRows) -> Outcome:
        """One call, in the main thread where the reward needs it."""
        if reward not in self.main_thread:
            try:
                return await self._call_anywhere(reward, rows)
            except MainThreadNeededError as error:
                self.main_thread.add(reward, error)
        return await call_reward(reward, rows, self._limit(reward), self.guard, self.main_thread.calls)

    async def _call_anywhere(self, reward: BaseRewardFunction, rows: CallRows) -> Outcome:
        """One call within the bounds on parallelism and time; the wait for a free slot does not count."""
        isolated = reward.isolation == "process"
        if isolated and reward.name not in self._processes:
            self._processes[reward.name] = ProcessCaller(reward, self._limit(reward), self.guard.device)
        own = self._processes[reward.name].size if isolated else reward.concurrency
        own = own or (ASYNC_CALLS if reward.is_async else self.runtime.max_workers)
        shared = ASYNC_CALLS * len(self.rewards) if reward.is_async else self.runtime.max_workers
        async with self._slot(reward.name, own), self._slot("async" if reward.is_async else "", shared):
            if not isolated:
                return await call_reward(reward, rows, self._limit(reward), self.guard)
            started = time.perf_counter()
            outcome = await self._processes[reward.name](rows)
            outcome.seconds.append(time.perf_counter() - started)
            return outcome

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
