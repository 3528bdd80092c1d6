"""Weights under the names and in the shapes of published checkpoints, which engines read."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, revert_weight_conversion

from grpo_lightning.distributed.sharding import plain_class
from grpo_lightning.numerics.routers import has_experts

_KNOWN: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()
"""Conversions of models whose class was asked for them: that builds the class once more, on the meta device."""


def as_published(policy: nn.Module, pairs: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The pairs of name and tensor as a published checkpoint has them.

    transformers holds some models otherwise than they are published (the experts of a mixture in one tensor). These are
    converted as a whole; the pairs of all others pass through.

    Args:
        policy: With adapters or without; an export of it is not changed by this.
        pairs: Of the bare model, tensors whole, or on the meta device.
    """
    model: Any = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    conversions = _conversions(model)
    if not conversions:
        yield from pairs
        return
    yield from _converted(model, conversions, dict(pairs)).items()


def _converted(model: Any, conversions: list[Any], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """By transformers, which reads the conversions from the model; what it has noted there itself decides how exports look."""
    noted = getattr(model, "_weight_conversions", None)
    model._weight_conversions = conversions
    try:
        converted: dict[str, Tensor] = revert_weight_conversion(model, weights)
    finally:
        model._weight_conversions = noted
    return converted


def _conversions(model: PreTrainedModel) -> list[Any]:
    """What transformers noted when it loaded the model, else what it knows of the model's class.

    Nothing is noted on ranks that are sent their part of the weights, of models made without a checkpoint, and of a mixture
    whose file has the experts in one tensor: some of vLLM's mixtures (LFM2-MoE) leave such a tensor out without a word.
    """
    noted: list[Any] | None = getattr(model, "_weight_conversions", None)
    if noted or (noted is not None and not has_experts(model.config.get_text_config())):
        return noted
    if model not in _KNOWN:
        with torch.device("meta"):
            plain = plain_class(model)(deepcopy(model.config))  # transformers knows no class that fully_shard has made
        known = get_model_conversion_mapping(plain, add_legacy=False)
        _KNOWN[model] = [conversion for conversion in known if not isinstance(conversion, PrefixChange)]
    return _KNOWN[model]
