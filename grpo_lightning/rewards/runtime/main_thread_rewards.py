"""Which rewards are called in the main thread: what their code says, and what their calls have shown."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from grpo_lightning.rewards.base import BaseRewardFunction, RewardContractError
from grpo_lightning.rewards.runtime.main_thread import MainThreadCalls
from grpo_lightning.rewards.runtime.reward_call import MainThreadNeededError
from grpo_lightning.rewards.runtime.thread_needs import main_thread_reason

log = logging.getLogger(__name__)


class MainThreadRewards:
    """The rewards of a runner that work in the main thread only, and the queue of their calls.

    Args:
        rewards: All of the runner, with unique names.
    """

    def __init__(self, rewards: Sequence[BaseRewardFunction]) -> None:
        self.calls = MainThreadCalls()
        self._names: set[str] = set()
        for reward in rewards:
            if reason := _reason(reward):
                self._add(reward, reason)

    def __contains__(self, reward: BaseRewardFunction) -> bool:
        return reward.name in self._names

    def add(self, reward: BaseRewardFunction, error: MainThreadNeededError) -> None:
        """Takes in a reward of which a call elsewhere asked for signals.

        Raises:
            RewardContractError: If it is asynchronous: the loop of such rewards is not in the main thread, nor is TRL's.
        """
        if reward.is_async:
            raise RewardContractError(
                f"Reward '{reward.name}' is asynchronous and asks for a signal (a time limit by signal.alarm, as math_verify "
                "has), which Python gives to the main thread only: its scores would be those of calls that failed. Write "
                "it as a plain def, or give it isolation: process."
            ) from error
        if reward not in self:
            self._add(reward, "a call of it asked for a signal")

    def _add(self, reward: BaseRewardFunction, reason: str) -> None:
        self._names.add(reward.name)
        log.info(
            "Reward '%s' is called in the main thread, once all completions are there: %s, which works nowhere else. To "
            "overlap it with other work, give it isolation: process.",
            *(reward.name, reason),
        )


def _reason(reward: BaseRewardFunction) -> str:
    if reward.isolation == "main":
        return "it has isolation: main"
    if reward.isolation == "process" or reward.is_async:  # a process has a main thread; of async ones only calls tell
        return ""
    return main_thread_reason(getattr(reward, "function", reward))
