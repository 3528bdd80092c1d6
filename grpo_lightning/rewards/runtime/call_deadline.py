"""The time limit of one call of a reward, and what it may raise."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from grpo_lightning.rewards.base import BaseRewardFunction
from grpo_lightning.rewards.runtime.event_loop import ends_unheard
from grpo_lightning.rewards.runtime.tracebacks import as_exception


class CallTimeoutError(TimeoutError):
    """A call that was given up after its time limit."""


async def within(time_limit: float, call: Callable[[], Awaitable[Any]], reward: BaseRewardFunction) -> Any:
    """What ``call`` gives, or the reason why there is nothing.

    Raises:
        CallTimeoutError: After ``time_limit`` seconds.
    """
    task = asyncio.ensure_future(_contained(call))
    ends_unheard(task)
    try:
        done, _ = await asyncio.wait([task], timeout=time_limit)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if done:
        return task.result()
    task.cancel()
    stays = (
        ""
        if reward.is_async or reward.isolation == "process"
        else (" Its thread cannot be stopped and goes on in the background; isolation: process makes it killable.")
    )
    raise CallTimeoutError(
        f"Reward '{reward.name}' took more than {time_limit:g} s for one call and was given up.{stays} "
        "Raise model.reward_runtime.time_limit or the reward's call_time_limit if it needs longer."
    )


async def _contained(call: Callable[[], Awaitable[Any]]) -> Any:
    """Turns what would end the loop of all rewards into an ordinary exception of this one."""
    try:
        return await call()
    except Exception:
        raise
    except BaseException as error:
        raise as_exception(error) from error
