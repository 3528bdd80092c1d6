"""Ranks that share an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from grpo_lightning.distributed.gather import own_rank
from grpo_lightning.generation.base import OnCompleted


def check_ranks(tensor_parallel_size: int) -> None:
    """Refuses engines over a part of a group of ranks.

    Raises:
        ValueError: If the ranks cannot be divided among engines.
    """
    ranks = own_rank()[1]
    if ranks % tensor_parallel_size:
        raise ValueError(
            f"model.generator.init_args.tensor_parallel_size={tensor_parallel_size} does not divide the "
            f"{ranks} ranks of this run. An engine spans whole ranks: use a divisor."
        )


def of_all_ranks(*per_prompt: Sequence[Any]) -> tuple[list[list[Any]], range]:
    """What there is of the prompts of all ranks of this rank's engine, and which of these are its own.

    Args:
        per_prompt: Lists with an entry for each prompt of this rank, or, on every rank, none.
    """
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    parts: list[Any] = [None] * group.world_size
    dist.all_gather_object(parts, [list(each) for each in per_prompt], group=group.cpu_group)
    start = sum(len(part[0]) for part in parts[: group.rank_in_group])
    rows = range(start, start + len(per_prompt[0]))
    return [[entry for part in parts for entry in part[n]] for n in range(len(per_prompt))], rows


def of_own_rows(on_completed: OnCompleted | None, rows: range, num_generations: int) -> OnCompleted:
    """What is called of the completions of all ranks' prompts: this rank's own with their own numbers, no others."""

    def completed(n: int, ids: list[int]) -> None:
        b, g = divmod(n, num_generations)
        if on_completed is not None and b in rows:
            on_completed((b - rows.start) * num_generations + g, ids)

    return completed
