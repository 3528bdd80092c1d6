"""Which weights of a vision-language model see images, and which read what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.numerics.output_head import output_head
from grpo_lightning.types import PromptImages


def tower_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The outermost modules that belong neither to the decoder nor to the output head, by name.

    What a model calls them differs (``visual``, ``vision_tower``, ``multi_modal_projector``, ``connector``); what they are
    not does not. Tower and projector are both among them.
    """
    decoder, head = output_head(model)
    text = {*decoder.modules(), *head.module.modules()}
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        holds_text = any(part in text for part in module.modules())
        inside = any(name.startswith(outer + ".") for outer in found)
        if not holds_text and not inside:
            found[name] = module
    return found


def freeze_tower(model: PreTrainedModel) -> None:
    """Takes the tower and its projector out of training."""
    for module in tower_modules(model).values():
        module.requires_grad_(False)


def tower_layers(model: PreTrainedModel) -> list[str]:
    """Names of the tower's linear layers, which those that an adapter is given (``q_proj``) may fit too.

    Args:
        model: The base, before it is wrapped.
    """
    return [
        f"{name}.{inner}" if inner else name
        for name, module in tower_modules(model).items()
        for inner, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    ]


def encode_images(model: PreTrainedModel, prompts: Sequence[PromptImages], device: torch.device) -> list[Any]:
    """What the model's ``get_image_features`` makes of the images of each prompt; without gradient where nothing trains.

    One prompt at a time: prompts differ in the number and shape of their tensors, and an image's features are then the same
    numbers in every micro-batch.

    Args:
        model: A vision-language model, adapters injected or not.
        prompts: Each shows an image at least.
        device: Where the model is.
    """
    encoded = []
    with torch.set_grad_enabled(torch.is_grad_enabled() and _tower_trains(model)):
        for prompt in prompts:
            pixels = {name: to_device(tensor, device) for name, tensor in prompt.pixels.items()}
            encoded.append(cast(Any, model).get_image_features(**pixels, return_dict=True))
    return encoded


def _tower_trains(model: PreTrainedModel) -> bool:
    """Looks at every module of the model, which takes tens of milliseconds: not for each prompt."""
    return any(weight.requires_grad for module in tower_modules(model).values() for weight in module.parameters())


def no_change_of_tower(model: PreTrainedModel) -> Tensor:
    """0, with a gradient of 0 for each weight of the tower that trains.

    Ranks wait for a gradient of every trained weight, and a pass may show no image; nor does a tower use all of its weights.

    Args:
        model: A vision-language model.
    """
    weights = [weight for module in tower_modules(model).values() for weight in module.parameters()]
    return torch.stack([weight.flatten()[0] for weight in weights if weight.requires_grad]).sum() * 0.0


def flat_features(features: Tensor | list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """``(n, H)`` of features as models return them: one tensor of any shape, or one an image."""
    parts = [features] if isinstance(features, Tensor) else list(features)
    return torch.cat([part.flatten(0, -2) for part in parts])
