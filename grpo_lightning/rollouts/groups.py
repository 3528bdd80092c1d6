"""Prompts and rollouts put together from parts, and parts taken out of them, in whole groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grpo_lightning.distributed.checkpoint_values import as_storable
from grpo_lightning.types import Conversation, PromptBatch, Rollouts, RoutedExperts

NOT_TENSORS = ("conversations", "images", "routed_experts")
TENSORS = tuple(name for name in Rollouts.__dataclass_fields__ if name not in NOT_TENSORS)


def take_prompts(batch: PromptBatch, groups: Sequence[int]) -> PromptBatch:
    """Some of the prompts, in the order given."""
    return PromptBatch(
        [batch.prompts[g] for g in groups],
        [batch.prompt_ids[g] for g in groups],
        [batch.uids[g] for g in groups],
        {name: [values[g] for g in groups] for name, values in batch.columns.items()},
        tuple(batch.images[g] for g in groups) if batch.images else (),
    )


def join_prompts(parts: Sequence[PromptBatch]) -> PromptBatch:
    """Prompts one after the other; a column that a part does not have is None there."""
    names = dict.fromkeys(name for part in parts for name in part.columns)
    return PromptBatch(
        [prompt for part in parts for prompt in part.prompts],
        [ids for part in parts for ids in part.prompt_ids],
        [uid for part in parts for uid in part.uids],
        {name: [value for part in parts for value in part.columns.get(name, [None] * len(part))] for name in names},
        tuple(images for part in parts for images in part.images),
    )


def take_groups(rollouts: Rollouts, groups: Sequence[int], rows: Sequence[Tensor]) -> Rollouts:
    """The rollouts of some prompts, renumbered from 0 in the order given.

    Args:
        rollouts: Of B prompts.
        groups: Prompts.
        rows: The completions of each of them.
    """
    flat = torch.cat(list(rows)) if rows else torch.zeros(0, dtype=torch.int64)
    tokens = rollouts.tokens_of(flat)
    prompts, routes = rollouts.prompts(), rollouts.routed_experts
    empty = rollouts.prompt_ids[:0]
    if routes is not None:
        of_prompts = routes.prompts.split(rollouts.prompt_lengths.tolist())
        taken = torch.cat([routes.prompts[:0], *(of_prompts[g] for g in groups)])
        routes = RoutedExperts(taken, routes.completions[tokens])
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
        conversations=tuple(rollouts.conversations[n] for n in flat.tolist()) if rollouts.conversations else (),
        images=tuple(rollouts.images[g] for g in groups) if rollouts.images else (),
        routed_experts=routes,
    )


def join_rollouts(parts: Sequence[Rollouts]) -> Rollouts:
    """Rollouts one after the other, prompts renumbered."""
    fields = {name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS if name != "group"}
    offsets = torch.tensor([0] + [part.num_prompts for part in parts]).cumsum(0).tolist()
    group = torch.cat([part.group + offset for part, offset in zip(parts, offsets, strict=False)])
    conversations = tuple(each for part in parts for each in part.conversations)
    images = tuple(each for part in parts for each in part.images)
    routes = _join_routes(parts)
    return Rollouts(**fields, group=group, conversations=conversations, images=images, routed_experts=routes)


def _join_routes(parts: Sequence[Rollouts]) -> RoutedExperts | None:
    """None where a part has none, but for parts without prompts."""
    routes = [part.routed_experts for part in parts if part.num_prompts]
    known = [each for each in routes if each is not None]
    if not known or len(known) < len(routes):
        return None
    return RoutedExperts(torch.cat([each.prompts for each in known]), torch.cat([each.completions for each in known]))


def rollouts_state(rollouts: Rollouts) -> dict[str, Any]:
    """Tensors of their own and plain values, for a checkpoint."""
    state: dict[str, Any] = {name: getattr(rollouts, name).clone() for name in TENSORS}
    if rollouts.routed_experts is not None:
        routes = rollouts.routed_experts
        state["routed_experts"] = {"prompts": routes.prompts.clone(), "completions": routes.completions.clone()}
    return state | {"conversations": [as_storable(each.plain()) for each in rollouts.conversations]}


def rollouts_of_state(state: dict[str, Any]) -> Rollouts:
    """The rollouts of ``rollouts_state``, their environments left behind."""
    conversations = tuple(Conversation(**each) for each in state.get("conversations", ()))
    routes = state.get("routed_experts")
    routed_experts = None if routes is None else RoutedExperts(**routes)
    return Rollouts(**{**state, "conversations": conversations, "routed_experts": routed_experts})
