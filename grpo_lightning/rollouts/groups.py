"""Rollouts put together from parts, and parts taken out of them, in whole groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grpo_lightning.types import Rollouts

ROLLOUT_FIELDS = tuple(Rollouts.__dataclass_fields__)


def take_groups(rollouts: Rollouts, groups: Sequence[int], rows: Sequence[Tensor]) -> Rollouts:
    """The rollouts of some prompts, renumbered from 0 in the order given.

    Args:
        rollouts: Of B prompts.
        groups: Prompts.
        rows: The completions of each of them.
    """
    flat = torch.cat(list(rows)) if rows else torch.zeros(0, dtype=torch.int64)
    tokens = rollouts.tokens_of(flat)
    prompts = rollouts.prompts()
    empty = rollouts.prompt_ids[:0]
    return Rollouts(
        prompt_ids=torch.cat([prompts[g] for g in groups]) if groups else empty,
        prompt_lengths=rollouts.prompt_lengths[list(groups)],
        completion_ids=rollouts.completion_ids[tokens],
        completion_lengths=rollouts.completion_lengths[flat],
        group=torch.repeat_interleave(
            torch.arange(len(groups)), torch.tensor([len(r) for r in rows], dtype=torch.int64)
        ),
        sampling_logprobs=rollouts.sampling_logprobs[tokens],
        truncated=rollouts.truncated[flat],
        completion_mask=rollouts.completion_mask[tokens],
    )


def join_rollouts(parts: Sequence[Rollouts]) -> Rollouts:
    """Rollouts one after the other, prompts renumbered."""
    fields = {name: torch.cat([getattr(part, name) for part in parts]) for name in ROLLOUT_FIELDS if name != "group"}
    offsets = torch.tensor([0] + [part.num_prompts for part in parts]).cumsum(0).tolist()
    group = torch.cat([part.group + offset for part, offset in zip(parts, offsets, strict=False)])
    return Rollouts(**fields, group=group)
