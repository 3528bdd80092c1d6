"""Passes of LoRA layers in which the adapter is added by the matrix product that computes it."""

from __future__ import annotations

from types import MethodType
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear


def add_in_one_product(policy: nn.Module) -> None:
    """Lets plain LoRA layers compute ``W x + scaling * B (A x)`` with one product for B that scales and adds, in place.

    peft takes the product, scales it and adds it, and casts or clones besides: up to six more passes over outputs as
    large as the layer's, which bound the time of small models. Under autocast the input is not copied in float32 either,
    for the matrices that are float32. The sum is rounded once and not three times.

    Layers that do more (DoRA, biases, convolutions, embeddings) are left alone, and so is every pass in which the
    adapter is off or merged, or several are on.

    Args:
        policy: A PEFT model; changed in place.
    """
    layer: Any
    for layer in policy.modules():
        is_linear = isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), nn.Linear)
        if is_linear and not layer.lora_variant and not any(layer.lora_bias.values()):
            layer.forward = MethodType(_forward, layer)


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if args or kwargs or layer.disable_adapters or layer.merged or len(active) != 1:
        return cast(Tensor, type(layer).forward(layer, x, *args, **kwargs))
    (name,) = active
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    result = layer.base_layer(x)
    if not torch.is_autocast_enabled(
        x.device.type
    ):  # which casts by itself: the layer's precision counts, not the adapter's
        x, a, b = x.to(result.dtype), a.to(result.dtype), b.to(result.dtype)
    low_rank = linear(layer.lora_dropout[name](x), a).flatten(0, -2)  # (T, rank)
    total = torch.addmm(result.flatten(0, -2), low_rank, b.T, alpha=layer.scaling[name])
    return total.view(result.shape).to(result.dtype)
