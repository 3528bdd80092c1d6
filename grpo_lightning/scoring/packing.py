"""Whole completions laid out for one forward pass, packed or padded.

Packed: sequences lie end to end in one row. With shared prompts a group is ``prompt, completion 1, ..., completion G``;
each completion attends to its prompt and to itself, so the prompt is computed once for the group. Positions restart at
each prompt and go on from the prompt's end in each completion. Nothing here touches a model or a device kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_lightning.types import Rollouts, ranges


@dataclass(frozen=True)
class AttentionSpans:
    """Which keys each stretch of queries of a packed row attends to. CPU tensors, S spans.

    The queries of span s are packed tokens ``cu_seq_q[s]:cu_seq_q[s + 1]``; its keys are the packed tokens
    ``key_index[cu_seq_k[s]:cu_seq_k[s + 1]]``, or the queries themselves where ``key_index`` is None. Its last query is
    aligned with its last key: a span has as many keys before its first query as its prefix has tokens.
    """

    cu_seq_q: Tensor
    """(S + 1,) int32: where queries start, then the number of packed tokens."""
    cu_seq_k: Tensor
    """(S + 1,) int32: where keys start."""
    key_index: Tensor | None
    """(sum of key lengths,) int64 positions in the packed row; None where keys and queries are the same tokens."""


@dataclass(frozen=True)
class PackedBatch:
    """One packed row of L tokens: some completions with their prompts."""

    input_ids: Tensor
    """(L,) int64."""
    position_ids: Tensor
    """(L,) int64: 0 at each prompt's first token."""
    spans: AttentionSpans
    score_index: Tensor
    """(T,) int64 in [0, L): the token whose hidden state predicts each completion token, in the order of
    ``rollouts.tokens_of(rows)``."""
    times: Tensor
    """(L,) int64: how many completions with their prompts each token stands for."""
    source_index: Tensor
    """(L,) int64: the place of each token in ``prompt_ids`` and, behind them, ``completion_ids``."""


@dataclass(frozen=True)
class PaddedBatch:
    """M rows, right-padded to L tokens. Padding follows the last token, so no real token attends to it."""

    input_ids: Tensor
    """(M, L) int64, padded with 0."""
    score_index: Tensor
    """(T,) int64 into the flattened (M * L,) positions, as in ``PackedBatch``."""
    times: Tensor
    """(M * L,) int64: 1, and 0 for padding."""
    source_index: Tensor
    """(M, L) int64, as in ``PackedBatch``; -1 for padding."""


def pad(rollouts: Rollouts, rows: Tensor) -> PaddedBatch:
    """Prompt and completion of each row, right-padded to the longest."""
    prompt, completion, prompt_start, completion_start = _sources(rollouts, rows)
    lengths = prompt + completion
    longest = int(lengths.max()) if len(rows) else 0
    first = torch.arange(len(rows)) * longest
    source = torch.cat([rollouts.prompt_ids, rollouts.completion_ids, torch.zeros(1, dtype=torch.int64)])
    source_index = torch.full((len(rows) * longest,), -1)
    source_index[ranges(first, prompt)] = ranges(prompt_start, prompt)
    source_index[ranges(first + prompt, completion)] = ranges(
        completion_start + rollouts.prompt_ids.numel(), completion
    )
    times = (source_index >= 0).long()
    source_index = source_index.view(len(rows), longest)
    return PaddedBatch(source[source_index], ranges(first + prompt - 1, completion), times, source_index)


def pack(rollouts: Rollouts, rows: Tensor, share_prompts: bool = True) -> PackedBatch:
    """These completions and their prompts end to end, each prompt once or (unshared) once per completion.

    Where no two completions have a prompt in common, prompt and completion are one span, and no key is gathered.
    """
    share_prompts = share_prompts and len(rollouts.group[rows].unique()) < len(rows)
    prompt, completion, prompt_start, completion_start = _sources(rollouts, rows)
    source = torch.cat([rollouts.prompt_ids, rollouts.completion_ids])
    completion_start = completion_start + rollouts.prompt_ids.numel()
    if not share_prompts:
        starts, lengths = _interleave(prompt_start, completion_start), _interleave(prompt, completion)
        total = prompt + completion
        packed_start = total.cumsum(0) - total
        source_index = ranges(starts, lengths)
        return PackedBatch(
            input_ids=source[source_index],
            position_ids=ranges(torch.zeros_like(total), total),
            spans=AttentionSpans(_offsets(total), _offsets(total), None),
            score_index=ranges(packed_start + prompt - 1, completion),
            times=torch.ones(int(total.sum()), dtype=torch.int64),
            source_index=source_index,
        )
    return _pack_shared(rollouts.group[rows], source, (prompt, completion, prompt_start, completion_start))


def _pack_shared(group: Tensor, source: Tensor, places: tuple[Tensor, Tensor, Tensor, Tensor]) -> PackedBatch:
    """Group by group: the prompt as one span, then each completion as a span with the prompt as prefix.

    Args:
        group: ``(M,)``, the group of each row.
        source: All prompt and completion tokens, which the starts refer to.
        places: ``(M,)`` each: prompt lengths, completion lengths, prompt starts, completion starts.
    """
    order = group.argsort(stable=True)
    prompt, completion, prompt_start, completion_start = (place[order] for place in places)
    # A span for the prompt before the first completion of each group: where it is not the first, one of no tokens.
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = group[order][1:] != group[order][:-1]
    opening = torch.where(first, prompt, 0)
    lengths = _interleave(opening, completion)
    packed_start = lengths.cumsum(0) - lengths
    leader = first.cumsum(0) - 1  # (M,), which group of this micro-batch the row belongs to
    prompt_at = packed_start[0::2][first][leader]
    completion_at = packed_start[1::2]
    kept = torch.stack([first, torch.ones_like(first)], dim=1).flatten()
    key_lengths = _interleave(opening, prompt + completion)[kept]
    key_starts = torch.stack([prompt_at, torch.zeros_like(prompt_at), prompt_at, completion_at], dim=1).flatten()
    key_counts = torch.stack([opening, torch.zeros_like(opening), prompt, completion], dim=1).flatten()
    score_start, score_first = torch.empty_like(order), torch.empty_like(order)
    score_start[order], score_first[order] = completion_at - 1, prompt_at + prompt - 1
    score_index = ranges(score_start, places[1])
    score_index[places[1].cumsum(0) - places[1]] = score_first  # the prompt's last token predicts the first token
    source_index = ranges(_interleave(prompt_start, completion_start), lengths)
    return PackedBatch(
        input_ids=source[source_index],
        position_ids=ranges(_interleave(torch.zeros_like(prompt), prompt), lengths),
        spans=AttentionSpans(_offsets(lengths[kept]), _offsets(key_lengths), ranges(key_starts, key_counts)),
        score_index=score_index,
        times=torch.repeat_interleave(_interleave(leader.bincount()[leader], torch.ones_like(leader)), lengths),
        source_index=source_index,
    )


def _sources(rollouts: Rollouts, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(M,)`` each: prompt lengths, completion lengths, starts in ``prompt_ids``, starts in ``completion_ids``."""
    group = rollouts.group[rows]
    prompt_start = rollouts.prompt_lengths.cumsum(0) - rollouts.prompt_lengths
    completion_start = rollouts.completion_lengths.cumsum(0) - rollouts.completion_lengths
    prompt = rollouts.prompt_lengths[group]
    if len(rows) and int(prompt.min()) < 1:
        empty = int(group[prompt.argmin()])
        raise ValueError(f"prompt {empty} has no tokens, so nothing predicts the first token of its completions")
    return prompt, rollouts.completion_lengths[rows], prompt_start[group], completion_start[rows]


def _interleave(left: Tensor, right: Tensor) -> Tensor:
    """Returns ``left[0], right[0], left[1], right[1]`` and so on."""
    return torch.stack([left, right], dim=1).flatten()


def _offsets(lengths: Tensor) -> Tensor:
    """(S + 1,) int32: 0, then the running sum."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
