"""The scheduler of a server that a run samples from: vLLM's own, with the shortened bookkeeping."""

from __future__ import annotations

import logging
from typing import Any

from grpo_lightning.generation.vllm.patches.short_bookkeeping import shorten_bookkeeping
from grpo_lightning.generation.vllm.patches.withheld import ToServer

logger = logging.getLogger(__name__)


def policy_scheduler(*, vllm_config: Any, **arguments: Any) -> Any:
    """What vLLM calls in the engine's process for ``--scheduler-cls``, which names a class or whatever makes a scheduler.

    Args:
        vllm_config: The server's.
        arguments: Of vLLM's schedulers.

    Returns:
        The scheduler that vLLM would have taken by itself.
    """
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    made = AsyncScheduler if vllm_config.scheduler_config.async_scheduling else Scheduler
    scheduler = made(vllm_config=vllm_config, **arguments)
    if shorten_bookkeeping(scheduler, ToServer()) is None:
        logger.info("vLLM does its own bookkeeping of each token: it has more to do at each than is known here.")
    return scheduler
