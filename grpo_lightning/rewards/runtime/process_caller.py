"""Calls of a reward in child processes, where a call that hangs or eats memory can be killed."""

from __future__ import annotations

import asyncio
import inspect
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from grpo_lightning.concurrency.event_loop import in_thread
from grpo_lightning.concurrency.tracebacks import traceback_of
from grpo_lightning.concurrency.worker_pool import UnsentReplyError, WorkerError, WorkerPool, WorkerStartError
from grpo_lightning.errors import write_all_text
from grpo_lightning.rewards.base import BaseRewardFunction, RewardContractError
from grpo_lightning.rewards.runtime.answer_checks import checked_values
from grpo_lightning.rewards.runtime.call_rows import CallRows, prepare_call
from grpo_lightning.rewards.runtime.outcome import CallTimeoutError, Outcome

if TYPE_CHECKING:
    import torch

PROCESSES = 2
"""Children of a reward that does not say how many (``concurrency``)."""
MEMORY_BYTES = 32 * 2**30
"""Address space of a child. Importing torch with CUDA maps over 10 GiB of it without using the memory."""


class ProcessCaller:
    """Calls one reward in child processes.

    Args:
        reward: Must be picklable: a class or function of a module that can be imported, not of a script or notebook.
        time_limit: Seconds per call.
        device: The rank's. Of several GPUs the children see this one alone, so that ``"cuda"`` means what it means in a
            thread; without it they see what this process sees.

    Raises:
        RewardContractError: If the reward cannot be sent to another process.
    """

    def __init__(self, reward: BaseRewardFunction, time_limit: float, device: torch.device | None = None) -> None:
        self.reward, self.size = reward, reward.concurrency or PROCESSES
        make, seen = partial(RewardInChild, reward), visible_devices(device)
        try:
            self._pool = WorkerPool(make, self.size, time_limit, MEMORY_BYTES, environment=seen)
        except Exception as error:  # pickle raises many kinds
            raise RewardContractError(
                f"Reward '{reward.name}' has isolation: process and cannot be sent to one: {error}. Define it in a "
                "module of its own, or use isolation: thread."
            ) from error

    async def __call__(self, rows: CallRows) -> Outcome:
        """The outcome of one call.

        Raises:
            RewardContractError: If the reward broke the contract, or cannot be imported in the process.
            CallTimeoutError: If it ran out of time and was killed.
            RuntimeError: With the child's traceback, if the reward raised; if what it logged cannot be sent.
        """
        try:
            kind, content = await in_thread(lambda: self._pool.call(rows))
        except WorkerError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise CallTimeoutError(f"Reward '{self.reward.name}': {error}") from error
            raise
        except UnsentReplyError as error:
            raise RuntimeError(
                f"Reward '{self.reward.name}' has isolation: process, and what it logged cannot leave that: {error}. Log "
                "numbers and texts."
            ) from error
        except WorkerStartError as error:
            raise RewardContractError(
                f"Reward '{self.reward.name}' has isolation: process, and its process cannot import it. Define it in a "
                f"module that imports without this script or notebook, or use isolation: thread. The process said:\n{error}"
            ) from error
        if kind == "outcome":
            return content
        if kind == "contract":
            raise RewardContractError(content)
        raise RuntimeError(f"in the reward's process:\n{content}")

    def close(self) -> None:
        """Ends the processes."""
        self._pool.close()


class RewardInChild:
    """The reward in a child process, which answers one call after the other."""

    def __init__(self, reward: BaseRewardFunction) -> None:
        self.reward = reward
        write_all_text()

    def __call__(self, rows: CallRows) -> tuple[str, Any]:
        """``("outcome", Outcome)``, ``("contract", message)`` or ``("raised", traceback)``."""
        try:
            arguments, outcome = prepare_call(self.reward, rows)
            result: Any = self.reward(**arguments)
            if inspect.isawaitable(result):
                result = asyncio.run(_awaited(result))
            outcome.rewards = checked_values(result, len(rows), self.reward.name)
        except RewardContractError as error:
            return "contract", str(error)
        except BaseException as error:  # SystemExit too: the child goes on with the next call
            return "raised", traceback_of(error)
        return "outcome", outcome


async def _awaited(result: Any) -> Any:
    return await result


def visible_devices(device: torch.device | None) -> dict[str, str]:
    """The variable that shows a child its rank's GPU and no other; empty where the rank has none.

    Example:
        >>> visible_devices(None)
        {}
    """
    if device is None or device.type != "cuda":
        return {}
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    index = device.index or 0
    return {"CUDA_VISIBLE_DEVICES": seen[index].strip() if index < len(seen) else str(index)}
