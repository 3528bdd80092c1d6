"""Groups with their rewards: taken out, put together, and kept in checkpoints as wholes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from grpo_lightning.distributed.checkpoint_values import as_storable, columns_as_storable
from grpo_lightning.rewards import RewardTable
from grpo_lightning.rollouts.groups import (
    join_prompts,
    join_rollouts,
    rollouts_of_state,
    rollouts_state,
    take_groups,
    take_prompts,
)
from grpo_lightning.types import PromptBatch, Rollouts


@dataclass(frozen=True)
class ScoredGroups:
    """Prompts with their completions and rewards: B groups, in order."""

    batch: PromptBatch
    rollouts: Rollouts
    rewards: RewardTable

    def __len__(self) -> int:
        return len(self.batch)

    def take(self, groups: Sequence[int]) -> ScoredGroups:
        """These groups, renumbered in the order given."""
        rows = [(self.rollouts.group == g).nonzero()[:, 0] for g in groups]
        flat = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)
        return ScoredGroups(
            take_prompts(self.batch, groups), take_groups(self.rollouts, groups, rows), self.rewards.take(flat)
        )

    @classmethod
    def joined(cls, parts: Sequence[ScoredGroups]) -> ScoredGroups:
        """All groups of the parts, in order; a column that a part does not have is None there."""
        batch = join_prompts([part.batch for part in parts])
        rewards = RewardTable.joined([part.rewards for part in parts])
        return cls(batch, join_rollouts([part.rollouts for part in parts]), rewards)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values; what teachers read of the data and of rewards is among them."""
        batch, rewards = self.batch, self.rewards
        prompts = {"prompts": as_storable(batch.prompts), "prompt_ids": batch.prompt_ids, "uids": batch.uids}
        scores = {"names": rewards.names, "values": rewards.values, "lists": rewards.lists}
        read = {"columns": columns_as_storable(batch.columns), "extra": columns_as_storable(rewards.extra)}
        return {"rollouts": rollouts_state(self.rollouts), **prompts, **scores, **read}

    @classmethod
    def from_state(cls, state: dict[str, Any], weights: Mapping[str, float]) -> ScoredGroups:
        """The groups of ``state_dict``, with the rewards' weights of now."""
        batch = PromptBatch(state["prompts"], state["prompt_ids"], state["uids"], state["columns"])
        of_now = torch.tensor([weights[name] for name in state["names"]], dtype=torch.float64)
        rewards = RewardTable(state["values"], state["names"], of_now, extra=state["extra"], lists=state["lists"])
        return cls(batch, rollouts_of_state(state["rollouts"]), rewards)
