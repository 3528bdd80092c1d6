"""Python values of every rank, in one collective."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

Value = TypeVar("Value")


def gather_objects(value: Value) -> list[Value]:
    """``value`` of every rank, in rank order; no collective on a single process.

    Example:
        >>> gather_objects({"tokens": 3})
        [{'tokens': 3}]
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [value]
    gathered: list[Value] = [value] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered
