"""Ranks that share an engine or a server, and wait for each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from grpo_lightning.generation.vllm.engine_process import is_distributed


def check_ranks(tensor_parallel_size: int) -> None:
    """Refuses engines over a part of a group of ranks.

    Raises:
        ValueError: If the ranks cannot be divided among engines.
    """
    ranks = dist.get_world_size() if is_distributed() else 1
    if ranks % tensor_parallel_size:
        raise ValueError(
            f"model.generator.init_args.tensor_parallel_size={tensor_parallel_size} does not divide the "
            f"{ranks} ranks of this run. An engine spans whole ranks: use a divisor."
        )


def of_all_ranks(
    prompt_ids: Sequence[Sequence[int]], seeds: Sequence[int]
) -> tuple[list[Sequence[int]], list[int], range]:
    """Prompts and seeds of all ranks of this rank's engine, and which of them are its own."""
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    parts: list[Any] = [None] * group.world_size
    dist.all_gather_object(parts, (list(prompt_ids), list(seeds)), group=group.cpu_group)
    start = sum(len(ids) for ids, _ in parts[: group.rank_in_group])
    rows = range(start, start + len(prompt_ids))
    return [ids for part, _ in parts for ids in part], [seed for _, part in parts for seed in part], rows


def wait_for_ranks() -> None:
    """Returns when every rank is here."""
    if is_distributed():
        dist.barrier()
