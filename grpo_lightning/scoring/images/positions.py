"""Positions of prompts with images, as the model itself counts them: three axes (M-RoPE) in the Qwen-VL families."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from grpo_lightning.types import PromptImages, Rollouts


def prompt_positions(model: PreTrainedModel, ids: Tensor, images: PromptImages) -> Tensor | None:
    """``(3, P)`` int64 positions of a prompt by the model's ``get_rope_index``; None where positions are the tokens' numbers.

    What follows the prompt goes on behind the largest of them, the same on all axes.

    Args:
        model: A vision-language model.
        ids: ``(P,)`` int64 on the CPU.
        images: Of the prompt.
    """
    inner: Any = model.base_model
    if not hasattr(inner, "get_rope_index"):
        return None
    if not images.images:
        return torch.arange(len(ids)).expand(3, -1)
    grids = {name: tensor for name, tensor in images.pixels.items() if name.endswith("_grid_thw")}
    kinds = {name: tensor[None] for name, tensor in images.per_token.items()}
    positions: Tensor = inner.get_rope_index(ids[None], **kinds, **grids)[0]
    return positions[:, 0]


def position_table(model: PreTrainedModel, rollouts: Rollouts, present: list[int]) -> Tensor | None:
    """``(3, prompt tokens + T + 1)`` int64: the position of each token of some prompts and their completions.

    Args:
        model: A vision-language model.
        rollouts: With images.
        present: The prompts; the positions of others are 0, and so is the last one, which is padding's.

    Returns:
        None where positions are the tokens' numbers.
    """
    if not hasattr(model.base_model, "get_rope_index"):
        return None
    prompts, ends = rollouts.prompts(), rollouts.prompt_lengths.cumsum(0).tolist()
    table = torch.zeros(3, rollouts.prompt_ids.numel() + rollouts.completion_ids.numel() + 1, dtype=torch.int64)
    behind = torch.zeros(rollouts.num_prompts, dtype=torch.int64)
    for b in present:
        positions = prompt_positions(model, prompts[b], rollouts.images[b])
        assert positions is not None
        table[:, ends[b] - len(prompts[b]) : ends[b]] = positions
        behind[b] = positions.max() + 1
    starts = rollouts.completion_lengths.cumsum(0) - rollouts.completion_lengths
    shift = torch.repeat_interleave(behind[rollouts.group] - starts, rollouts.completion_lengths)
    table[:, ends[-1] : -1] = torch.arange(rollouts.completion_ids.numel()) + shift
    return table
