"""Replicas: how many copies of the policy are trained side by side, and which ranks make up one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor

from grpo_lightning.distributed.gather import gather_objects
from grpo_lightning.rollouts.groups import join_rollouts
from grpo_lightning.types import Rollouts

Value = TypeVar("Value")


@dataclass(frozen=True)
class Replica:
    """The ranks that run every training pass together, on the same tokens: a tensor-parallel group, else one rank.

    Each of them samples from prompts of its own and has the completions scored; what they train on is all of theirs.
    """

    index: int = 0
    """Which of the replicas."""
    count: int = 1
    """Replicas in the run. Strategies take the mean of gradients over them."""
    member: int = 0
    """Which of the ranks of this replica."""
    size: int = 1
    """Ranks of this replica."""
    members: dist.ProcessGroup | None = None
    siblings: dist.ProcessGroup | None = None
    """One rank of each replica; None for all ranks."""

    @property
    def leads(self) -> bool:
        """True on one rank of the replica, whose numbers stand for it."""
        return self.member == 0

    def rollouts(self, own: Rollouts) -> Rollouts:
        """Those of all its ranks."""
        return own if self.size == 1 else join_rollouts(gather_objects(own, self.members))

    def rows(self, own: Tensor) -> Tensor:
        """``(n, ...)`` of each rank, end to end, on the CPU."""
        return own if self.size == 1 else torch.cat(gather_objects(own.cpu(), self.members))

    def of_all(self, value: Value) -> list[Value]:
        """``value`` of every replica, in order."""
        return gather_objects(value, self.siblings)


def replica_of(strategy: Strategy, rank: int, ranks: int) -> Replica:
    """The replica of this rank.

    Args:
        strategy: Set up.
        rank: This one.
        ranks: All of them.
    """
    if not isinstance(strategy, ModelParallelStrategy) or strategy.device_mesh["tensor_parallel"].size() == 1:
        return Replica(rank, ranks)
    data, tensor = strategy.device_mesh["data_parallel"], strategy.device_mesh["tensor_parallel"]
    places = {"index": data.get_local_rank(), "member": tensor.get_local_rank()}
    groups = {"members": tensor.get_group(), "siblings": data.get_group()}
    return Replica(count=data.size(), size=tensor.size(), **places, **groups)  # type: ignore[arg-type]
