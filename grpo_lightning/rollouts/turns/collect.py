"""Rollouts of several turns as the tensors that training takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from grpo_lightning.rollouts.turns.rollout import PlayedRollout
from grpo_lightning.rollouts.turns.same_start import same_start
from grpo_lightning.types import Rollouts


def collect(
    played: Sequence[PlayedRollout], prompt_ids: Sequence[Sequence[int]], num_generations: int, filler: int
) -> Rollouts:
    """The rollouts of B prompts, prompt-major.

    A prompt is what the rollouts of its group begin with; what the environment said to one of them alone begins its
    completion, masked. A rollout that failed stays as a completion none of whose tokens count: it takes part in nothing.

    Args:
        played: N rollouts.
        prompt_ids: B prompts of the data, for groups in which no rollout got as far as its prompt.
        num_generations: G.
        filler: Token of a completion without any.
    """
    prompts, rows, conversations = [], [], []
    for b, of_data in enumerate(prompt_ids):
        group = played[b * num_generations : (b + 1) * num_generations]
        starts = [each.trail.prompt_ids for each in group if each.trail.prompt_ids]
        prompts.append(common_start(starts) or list(of_data))
        start = len(prompts[-1])
        rows += [_row(each, start, filler) for each in group]
        conversations += [replace(each.conversation, branches=each.trail.branches(start)) for each in group]
    return Rollouts(
        prompt_ids=_int64([token for ids in prompts for token in ids]),
        prompt_lengths=_int64([len(ids) for ids in prompts]),
        completion_ids=_int64([token for ids, _, _ in rows for token in ids]),
        completion_lengths=_int64([len(ids) for ids, _, _ in rows]),
        group=torch.arange(len(prompts)).repeat_interleave(num_generations),
        sampling_logprobs=torch.tensor([value for _, logprobs, _ in rows for value in logprobs], dtype=torch.float32),
        truncated=torch.tensor([each.truncated for each in played], dtype=torch.bool),
        completion_mask=torch.tensor([is_own for _, _, mask in rows for is_own in mask], dtype=torch.bool),
        conversations=tuple(conversations),
    )


def common_start(lists: Sequence[Sequence[int]]) -> list[int]:
    """What all of them begin with.

    Example:
        >>> common_start([[1, 2, 3], [1, 2, 4, 5]]), common_start([])
        ([1, 2], [])
    """
    if not lists:
        return []
    return list(lists[0][: min(same_start(lists[0], ids) for ids in lists)])


def _row(played: PlayedRollout, start: int, filler: int) -> tuple[list[int], list[float], list[bool]]:
    """Tokens, logprobs and mask behind the group's prompt."""
    ids, logprobs, mask = played.trail.row(start)
    if played.conversation.is_fault:
        mask = [False] * len(mask)
    return (ids, logprobs, mask) if ids else ([filler], [0.0], [False])


def _int64(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)
