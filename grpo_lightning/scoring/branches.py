"""Completions with several histories, for the passes over a model: each history is a sequence of its own."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from grpo_lightning.types import Rollouts


def branched(rollouts: Rollouts, rows: Tensor) -> tuple[Rollouts, Tensor]:
    """The same tokens in the same order, each history a completion; and which of these the completions ``rows`` have.

    A history that begins with its group's whole prompt shares it; those that begin with less of it share that.

    Args:
        rollouts: N completions.
        rows: ``(M,)`` int64 in [0, N).
    """
    if not has_branches(rollouts):
        return rollouts, rows
    starts: dict[tuple[int, int], int] = {(g, int(n)): g for g, n in enumerate(rollouts.prompt_lengths)}
    prompts = rollouts.prompts()
    lengths, groups, counts = list[int](), list[int](), list[int]()
    for g, whole, conversation in zip(
        rollouts.group.tolist(), rollouts.completion_lengths.tolist(), rollouts.conversations, strict=True
    ):
        branches = conversation.branches or [(len(prompts[g]), whole)]
        counts.append(len(branches))
        for kept, length in branches:
            if (g, kept) not in starts:
                starts[g, kept] = len(prompts)
                prompts.append(prompts[g][:kept])
            lengths.append(length)
            groups.append(starts[g, kept])
    first = [0, *accumulate(counts)]
    parts = [torch.arange(first[n], first[n + 1]) for n in rows.tolist()]
    divided = replace(
        rollouts,
        prompt_ids=torch.cat(prompts),
        prompt_lengths=torch.tensor([len(ids) for ids in prompts]),
        completion_lengths=torch.tensor(lengths),
        group=torch.tensor(groups),
        truncated=torch.repeat_interleave(rollouts.truncated, torch.tensor(counts)),
        conversations=(),
    )
    return divided, torch.cat(parts) if parts else rows


def planned_lengths(rollouts: Rollouts) -> Tensor:
    """``(N,)`` int64: tokens of each completion in a pass, with the parts of prompts that its further histories begin with."""
    if not has_branches(rollouts):
        return rollouts.completion_lengths
    again = [sum(kept for kept, _ in each.branches[1:]) for each in rollouts.conversations]
    return rollouts.completion_lengths + torch.tensor(again)


def has_branches(rollouts: Rollouts) -> bool:
    """Whether a completion has more than one history."""
    return any(each.branches for each in rollouts.conversations)
