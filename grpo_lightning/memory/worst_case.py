"""Rollouts that fill a micro-batch in the ways that take most memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from grpo_lightning.scoring.planning import Layout
from grpo_lightning.types import PromptImages, Rollouts


def worst_shapes(layout: Layout, completion_length: int) -> tuple[int, ...]:
    """Lengths of the completions that a micro-batch of any number of tokens may be full of, at worst.

    The longest: attention scores that are written out grow with the square. Packed, also the shortest: each completion
    brings a copy of its prompt's keys and values, so a group of short ones has the most of them for its tokens.
    """
    return (completion_length, 1) if layout == "packed" and completion_length > 1 else (completion_length,)


def filling_rollouts(
    tokens: int, prompt_length: int, completion_length: int, group_size: int, vocab_size: int, layout: Layout
) -> Rollouts:
    """Groups that make one micro-batch of ``tokens`` tokens, or one less; padded: of as many whole rows as fit.

    Args:
        tokens: As ``packing.count_tokens`` counts them, at least 2.
        prompt_length: Tokens of the prompts; the last group's may be shorter.
        completion_length: Tokens of the completions; the last one has what is left.
        group_size: Completions that share a prompt.
        vocab_size: Tokens are drawn from [0, vocab_size), always the same.
        layout: How tokens are counted.

    Example:
        >>> rollouts = filling_rollouts(20, 4, 5, 2, 100, "packed")  # 4 + 5 + 5, then 4 + 2
        >>> rollouts.completion_lengths.tolist(), rollouts.group.tolist()
        ([5, 5, 2], [0, 0, 1])
    """
    if layout == "padded":
        group_size, longest = 1, prompt_length + completion_length
        tokens = max(tokens // longest * longest, min(tokens, longest))
    prompts, lengths, group, room = [], [], [], tokens
    while room >= 2:
        prompts.append(min(prompt_length, room - 1))
        room -= prompts[-1]
        for length in _completions(room, completion_length, group_size):
            lengths.append(length)
            group.append(len(prompts) - 1)
            room -= length
    generator = torch.Generator().manual_seed(0)
    total = sum(lengths)
    return Rollouts(
        prompt_ids=torch.randint(vocab_size, (sum(prompts),), generator=generator),
        prompt_lengths=torch.tensor(prompts),
        completion_ids=torch.randint(vocab_size, (total,), generator=generator),
        completion_lengths=torch.tensor(lengths),
        group=torch.tensor(group),
        sampling_logprobs=torch.zeros(total),
        truncated=torch.zeros(len(lengths), dtype=torch.bool),
        completion_mask=torch.ones(total, dtype=torch.bool),
    )


def showing(rollouts: Rollouts, ids: Sequence[int], images: PromptImages) -> Rollouts:
    """The rollouts with this prompt in the place of every one that is as long, and no images in the others.

    Args:
        rollouts: Of text.
        ids: A prompt.
        images: That it shows.
    """
    prompts = [list(ids) if len(prompt) == len(ids) else prompt.tolist() for prompt in rollouts.prompts()]
    shown = tuple(images if len(prompt) == len(ids) else _of_text(prompt) for prompt in prompts)
    return replace(rollouts, prompt_ids=torch.tensor([token for prompt in prompts for token in prompt]), images=shown)


def _of_text(ids: list[int]) -> PromptImages:
    return PromptImages((), ids, torch.zeros(len(ids), dtype=torch.bool), {}, {})


def _completions(room: int, length: int, count: int) -> list[int]:
    """Lengths of up to ``count`` completions that share ``room`` tokens, the last one cut."""
    whole = min(room // length, count)
    rest = room - whole * length
    return [length] * whole + ([rest] if rest and whole < count else [])
