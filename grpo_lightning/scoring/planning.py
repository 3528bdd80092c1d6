"""Which completions share a micro-batch, under a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Layout = Literal["packed", "padded"]


def plan_micro_batches(
    prompt_lengths: Tensor,
    completion_lengths: Tensor,
    group: Tensor,
    rows: Tensor,
    max_tokens: int,
    layout: Layout = "packed",
) -> list[Tensor]:
    """Splits completions into micro-batches of at most ``max_tokens`` tokens, counted as the layout lays them out.

    Packed: a group stays together where it fits, so that its prompt is computed once; a larger group is cut into parts
    that each repeat the prompt; groups and parts then fill the micro-batches best-fit decreasing. Padded: rows sorted
    by length, each micro-batch as many as fit at its longest. A completion that is longer than the budget with its
    prompt becomes a micro-batch of its own. The largest micro-batch comes first: what does not fit into memory
    fails at once.

    Args:
        prompt_lengths: ``(B,)`` int64 tokens.
        completion_lengths: ``(N,)`` int64 tokens.
        group: ``(N,)`` int64 in [0, B).
        rows: The completions to place, int64 in [0, N), each once.
        max_tokens: ``model.max_tokens_per_microbatch``.
        layout: How tokens are counted.

    Returns:
        Disjoint int64 index tensors that cover ``rows``; no entry when ``rows`` is empty.
    """
    if max_tokens < 1:
        raise ValueError(f"model.max_tokens_per_microbatch={max_tokens} holds no token. Choose a positive number.")
    chosen = rows.tolist()
    completions = dict(zip(chosen, completion_lengths[rows].tolist(), strict=True))
    prompts = dict(zip(chosen, prompt_lengths[group[rows]].tolist(), strict=True))
    if layout == "padded":
        bins = _plan_padded({row: prompts[row] + completions[row] for row in chosen}, max_tokens)
    else:
        members: dict[int, list[int]] = {}
        for row, prompt in zip(chosen, group[rows].tolist(), strict=True):
            members.setdefault(prompt, []).append(row)
        bins = _plan_packed(list(members.values()), prompts, completions, max_tokens)
    return [torch.tensor(rows_of_bin, dtype=torch.int64) for rows_of_bin in bins]


def count_tokens(
    prompt_lengths: Tensor, completion_lengths: Tensor, group: Tensor, rows: Tensor, layout: Layout = "packed"
) -> int:
    """Tokens that a micro-batch of these completions puts through the model.

    Packed: each prompt once, each completion once. Padded: rows times the longest. The fill of a plan is the mean of
    ``count_tokens(...) / max_tokens`` over its micro-batches.
    """
    if not len(rows):
        return 0
    if layout == "padded":
        return len(rows) * int((prompt_lengths[group[rows]] + completion_lengths[rows]).max())
    return int(completion_lengths[rows].sum()) + int(prompt_lengths[group[rows].unique()].sum())


def _plan_padded(lengths: dict[int, int], max_tokens: int) -> list[list[int]]:
    """Rows in order of falling length, cut where one more would exceed the budget."""
    bins: list[list[int]] = []
    for row in sorted(lengths, key=lengths.__getitem__, reverse=True):
        if bins and (len(bins[-1]) + 1) * lengths[bins[-1][0]] <= max_tokens:
            bins[-1].append(row)
        else:
            bins.append([row])
    return bins


def _plan_packed(
    groups: list[list[int]], prompts: dict[int, int], completions: dict[int, int], max_tokens: int
) -> list[list[int]]:
    """Groups, cut where they exceed the budget, into bins of ``max_tokens``."""
    parts: list[list[int]] = []
    for rows in groups:
        room = max_tokens - prompts[rows[0]]
        parts += [[rows[i] for i in part] for part in _best_fit([completions[row] for row in rows], room)]
    costs = [prompts[part[0]] + sum(completions[row] for row in part) for part in parts]
    bins = sorted(_best_fit(costs, max_tokens), key=lambda bin_: -sum(costs[i] for i in bin_))
    return [[row for i in bin_ for row in parts[i]] for bin_ in bins]


def _best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of indices into ``sizes``: largest first, each into the fullest bin with room, else into a new one."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        fitting = [(space, i) for i, space in enumerate(room) if space >= sizes[index]]
        if fitting:
            best = min(fitting)[1]
            bins[best].append(index)
            room[best] -= sizes[index]
        else:
            bins.append([index])
            room.append(capacity - sizes[index])
    return [sorted(bin_) for bin_ in bins]
