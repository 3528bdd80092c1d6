"""Python values of every rank, in one collective, and which of the ranks this one is."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

Value = TypeVar("Value")


def own_rank() -> tuple[int, int]:
    """The number of this rank, and how many there are.

    Example:
        >>> own_rank()
        (0, 1)
    """
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def is_distributed() -> bool:
    """True where ranks train together."""
    return own_rank()[1] > 1


def gather_objects(value: Value, group: dist.ProcessGroup | None = None) -> list[Value]:
    """``value`` of every rank (of ``group``, where given), in rank order; no collective on a single process.

    Example:
        >>> gather_objects({"tokens": 3})
        [{'tokens': 3}]
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return [value]
    gathered: list[Value] = [value] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered
