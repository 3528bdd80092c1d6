"""Prompts with images to the further arguments of a model's prefill, padded on the left as its tokens are."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from grpo_lightning.scoring.images.positions import prompt_positions
from grpo_lightning.scoring.images.tower import encode_images
from grpo_lightning.types import PromptImages


def prefill_arguments(
    model: PreTrainedModel, prompt_ids: Sequence[Sequence[int]], images: Sequence[PromptImages], device: torch.device
) -> tuple[dict[str, Any], Tensor | None]:
    """What the model's forward pass over b padded prompts takes beside ids and mask.

    Args:
        model: A vision-language model, adapters injected or not.
        prompt_ids: b lists of token ids.
        images: b of them.
        device: Where the model is.

    Returns:
        The arguments, ``position_ids`` ``(3, b, width)`` among them where positions have three axes; and there ``(b,)`` by
        how much the position of what follows differs from the number of its token, else None.
    """
    width = max(map(len, prompt_ids))
    encoded = encode_images(model, [each for each in images if each.images], device)
    arguments: dict[str, Any] = {"mm_encoder_outputs": {"image": _joined(encoded)}} if encoded else {}
    takes = signature(model.forward).parameters
    for name in dict.fromkeys(name for each in images for name in each.per_token if name in takes):
        kinds = [each.per_token.get(name, torch.zeros_like(each.is_image, dtype=torch.int64)) for each in images]
        arguments[name] = torch.stack([pad(kind, (width - len(kind), 0)) for kind in kinds]).to(device)
    positions = [prompt_positions(model, torch.tensor(ids), each) for ids, each in zip(prompt_ids, images, strict=True)]
    known = [each for each in positions if each is not None]
    if not known:
        return arguments, None
    arguments["position_ids"] = torch.stack([pad(each, (width - each.shape[1], 0)) for each in known], dim=1).to(device)
    return arguments, torch.tensor([int(each.max()) + 1 - each.shape[1] for each in known], device=device)


def padding_token(ids: Sequence[int], images: PromptImages) -> int:
    """A token of the prompt that no image takes the place of: the model counts placeholders, padded ones too."""
    return int(ids[int((~images.is_image).nonzero()[0, 0])])


def _joined(encoded: Sequence[Any]) -> Any:
    """The outputs of ``get_image_features`` of several prompts as that of one call."""
    first = encoded[0]
    values = {"pooler_output": _end_to_end([one.pooler_output for one in encoded])}
    if getattr(first, "deepstack_features", None):
        layers = zip(*(one.deepstack_features for one in encoded), strict=True)
        values["deepstack_features"] = [_end_to_end(same) for same in layers]
    return type(first)(**values)


def _end_to_end(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    return [features for part in parts for features in part]
