"""Rollouts of prompts with images to the inputs of a pass: features in the place of placeholder tokens, and positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from grpo_lightning.numerics.deterministic_gather import rows_at
from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.scoring.images.positions import position_table
from grpo_lightning.scoring.images.tower import encode_images, flat_features
from grpo_lightning.types import PromptImages, Rollouts


def decoder_inputs(
    model: PreTrainedModel, rollouts: Rollouts, source_index: Tensor, device: torch.device
) -> dict[str, Any]:
    """The decoder's arguments for tokens laid out in any way, the images of each prompt encoded once.

    Args:
        model: A vision-language model, adapters injected or not.
        rollouts: With images, on the CPU.
        source_index: ``(rows, L)`` int64: the place of each token in ``prompt_ids`` and, behind them, ``completion_ids``;
            -1 for padding.
        device: Where the model is.

    Returns:
        ``inputs_embeds`` ``(rows, L, H)``; ``position_ids`` ``(3, rows, L)`` of models whose positions have three axes; the
        features that deeper layers add, of models that have such.
    """
    ids = torch.cat([rollouts.prompt_ids, rollouts.completion_ids, rollouts.prompt_ids.new_zeros(1)])[source_index]
    present = _present(rollouts, source_index)
    encoded, place = _encoded(model, rollouts, present, device)
    row = place[source_index]  # (rows, L), of the features; -1 for text
    # A token that the policy sampled is text, also where it is the placeholder's.
    embeds = model.get_input_embeddings()(to_device(ids.masked_fill(row >= 0, 0), device))
    inputs: dict[str, Any] = {}
    if encoded:
        is_image, chosen = to_device(row >= 0, device), to_device(row[row >= 0], device)
        features = flat_features([flat_features(one.pooler_output) for one in encoded])
        embeds = embeds.index_put((is_image,), rows_at(features, chosen).to(embeds.dtype))
        inputs |= _deeper(encoded, is_image, chosen)
    table = position_table(model, rollouts, present)
    if table is not None:
        inputs["position_ids"] = to_device(table[:, source_index], device)
    return inputs | {"inputs_embeds": embeds}


def _present(rollouts: Rollouts, source_index: Tensor) -> list[int]:
    """The prompts that are laid out, ascending."""
    of_prompts = source_index[(source_index >= 0) & (source_index < rollouts.prompt_ids.numel())]
    return torch.bucketize(of_prompts, rollouts.prompt_lengths.cumsum(0), right=True).unique().tolist()


def _encoded(
    model: PreTrainedModel, rollouts: Rollouts, present: list[int], device: torch.device
) -> tuple[list[Any], Tensor]:
    """The encoded images of these prompts, and the row of all features that each source token takes."""
    ends = rollouts.prompt_lengths.cumsum(0)
    place = torch.full((rollouts.prompt_ids.numel() + rollouts.completion_ids.numel() + 1,), -1)
    shown = [b for b in present if rollouts.images[b].images]
    encoded, taken = encode_images(model, [rollouts.images[b] for b in shown], device), 0
    for b, output in zip(shown, encoded, strict=True):
        places = int(ends[b] - rollouts.prompt_lengths[b]) + rollouts.images[b].is_image.nonzero()[:, 0]
        found = len(flat_features(output.pooler_output))
        if found != len(places):
            raise ValueError(
                f"{type(model).__name__} makes {found} features of the images of a prompt in which the processor left "
                f"{len(places)} placeholder tokens. The processor beside the model is not the model's."
            )
        place[places] = torch.arange(taken, taken + found)
        taken += found
    return encoded, place


def _deeper(encoded: list[Any], is_image: Tensor, chosen: Tensor) -> dict[str, Any]:
    """What layers above the first one add at the images' tokens (Qwen3-VL's DeepStack)."""
    of_prompts = [getattr(one, "deepstack_features", None) for one in encoded]
    if not of_prompts[0]:
        return {}
    layers = [flat_features([flat_features(layer) for layer in same]) for same in zip(*of_prompts, strict=True)]
    return {"visual_pos_masks": is_image, "deepstack_visual_embeds": [rows_at(layer, chosen) for layer in layers]}


def own_inputs(images: PromptImages, input_ids: Tensor) -> dict[str, Tensor]:
    """Further arguments of the model's own forward pass over one prompt with a completion: none without images.

    Args:
        images: Of the prompt.
        input_ids: ``(1, L)`` on the model's device, the prompt and what follows it.
    """
    if not images.images:
        return {}
    device, behind = input_ids.device, input_ids.shape[1] - len(images.is_image)
    per_token = {name: to_device(pad(kinds, (0, behind))[None], device) for name, kinds in images.per_token.items()}
    return per_token | {name: to_device(tensor, device) for name, tensor in images.pixels.items()}
