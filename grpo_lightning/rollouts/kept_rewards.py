"""Rewards that a checkpoint keeps: of rollouts whose environments it cannot keep, so that nothing could score them later."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from grpo_lightning.distributed.checkpoint_values import columns_as_storable
from grpo_lightning.rewards import RewardTable
from grpo_lightning.types import Rollouts

logger = logging.getLogger(__name__)


def has_environments(rollouts: Rollouts) -> bool:
    """Whether rewards may look at instances of this process."""
    return any(conversation.environment is not None for conversation in rollouts.conversations)


def rewards_state(await_rewards: Callable[[], RewardTable]) -> dict[str, Any] | None:
    """Tensors and plain values; None where scoring fails, which is raised where a step waits for it."""
    try:
        table = await_rewards()
    except Exception as error:  # of users' rewards
        logger.warning("The checkpoint is without the rewards of the next batch, which failed: %r", error)
        return None
    return {
        "values": table.values.clone(),
        "names": table.names,
        "weights": table.weights.clone(),
        "extra": columns_as_storable(table.extra),
        "metrics": table.metrics,
        "lists": table.lists,
    }


def rewards_of_state(states: Sequence[dict[str, Any] | None], rows: Tensor) -> Callable[[], RewardTable] | None:
    """The rewards of these rows of all parts, one after the other; None where a part has none."""
    kept = [state for state in states if state is not None]
    if len(kept) < len(states):
        return None
    table = RewardTable.joined([RewardTable(**state) for state in kept]).take(rows)
    return lambda: table
