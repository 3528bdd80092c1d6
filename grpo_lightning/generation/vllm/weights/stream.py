"""The policy's weights on their way to an inference engine: whole tensors, one at a time, under the names and in the
shapes of published checkpoints, which engines read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, revert_weight_conversion

from grpo_lightning.distributed.sharding import plain_class, whole
from grpo_lightning.finetuning.adapters import hot_load_obstacle, is_adapted, merged_outlines, merged_state_dict
from grpo_lightning.finetuning.quantization import dequantized, outline
from grpo_lightning.numerics.routers import has_experts

Shapes = Mapping[str, tuple[int, ...]]


@torch.no_grad()
def base_state_dict(policy: nn.Module, is_outlined: bool = False) -> Iterator[tuple[str, Tensor]]:
    """The weights of the bare model without its LoRA adapter, dequantised, tied weights under each of their names.

    Args:
        policy: With LoRA or without.
        is_outlined: Yield empty tensors on the meta device instead, of the same dtypes and whole shapes.
    """
    for path, module in policy.named_modules(remove_duplicate=False):
        name = _bare_name(path)
        if name is None:
            continue
        kept = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
        for own, tensor in (module._parameters | kept).items():
            if tensor is not None:
                yield f"{name}.{own}" if name else own, outline(tensor) if is_outlined else dequantized(tensor)


def _bare_name(path: str) -> str | None:
    """The path in the bare model of a module of a LoRA model; None for the parts of an adapter.

    Example:
        >>> _bare_name("base_model.model.model.layers.0.q_proj.base_layer")
        'model.layers.0.q_proj'
    """
    if ".lora_" in path:
        return None
    return path.removeprefix("base_model.model").removeprefix(".").removesuffix(".base_layer")


def trained_names(policy: nn.Module) -> frozenset[str] | None:
    """Names of the merged weights that training changes; None where that cannot be told, so all of them may."""
    if is_adapted(policy) and hot_load_obstacle(policy) is not None:
        return None
    layers = {_bare_name(path) for path, module in policy.named_modules() if isinstance(module, BaseTunerLayer)}
    names = {f"{name}.weight" for name in layers}
    for path, parameter in policy.named_parameters(remove_duplicate=False):
        module, _, own = path.rpartition(".")
        name = _bare_name(module)
        if parameter.requires_grad and name is not None:
            names.add(f"{name}.{own}" if name else own)
    return frozenset(names)


@dataclass
class WeightStream:
    """One pass over the policy's weights that counts what it yields.

    Sharded weights are gathered one at a time, in a collective: all ranks have to iterate.

    Args:
        policy: The policy, with or without adapters.
        merge_adapters: Add LoRA to the base, in new tensors; False leaves it out.
        names: Only these weights; None for all.
    """

    policy: nn.Module
    merge_adapters: bool = True
    names: frozenset[str] | None = None
    bytes: int = 0
    started: float = field(default_factory=time.perf_counter)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Name and whole tensor; one that had to be made lives until the consumer lets go of it."""
        for name, tensor in as_published(self.policy, self._whole_tensors()):
            self.bytes += tensor.numel() * tensor.element_size()
            yield name, tensor

    def _whole_tensors(self) -> Iterator[tuple[str, Tensor]]:
        source = merged_state_dict if self.merge_adapters else base_state_dict
        for name, tensor in source(self.policy):
            if self._has(name):
                yield name, whole(tensor)

    def _has(self, name: str) -> bool:
        return self.names is None or name in self.names

    def layout(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, dtype and whole shape of each tensor that iterating yields, in that order.

        No weight is read or gathered: one rank may ask alone.
        """
        outlines = merged_outlines(self.policy) if self.merge_adapters else base_state_dict(self.policy, True)
        chosen = ((name, tensor) for name, tensor in outlines if self._has(name))
        return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in as_published(self.policy, chosen)]

    def metrics(self) -> dict[str, float]:
        """What is logged of a transfer; call it once the engine holds the weights."""
        return transfer_metrics(self.bytes, time.perf_counter() - self.started)


def transfer_metrics(size: int, seconds: float) -> dict[str, float]:
    """Time, megabytes and GB/s (10**9 bytes) of a transfer of ``size`` bytes."""
    return {
        "weight_sync/seconds": seconds,
        "weight_sync/megabytes": size / 1e6,
        "weight_sync/gb_per_second": size / 1e9 / max(seconds, 1e-9),
    }


def weight_shapes(policy: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and whole shapes of all weights, adapters merged; nothing is gathered, merged or copied."""
    shapes = {}
    for path, module in policy.named_modules(remove_duplicate=False):
        name = _bare_name(path)
        for own, tensor in module._parameters.items() if name is not None else ():
            if tensor is not None:
                shapes[f"{name}.{own}" if name else own] = tuple(outline(tensor).shape)
    return shapes


def check_same_weights(policy: nn.Module, expected: Shapes) -> None:
    """Refuses weights that differ in name or shape from those the engine was built for.

    An engine that is given an unknown name or a wrong shape is left half changed, and one that misses a name goes on
    sampling from the old weight without a word.

    Raises:
        ValueError: Naming the first differences.
    """
    found = weight_shapes(policy)
    if found == expected:
        return
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    shared = sorted(found.keys() & expected.keys())
    reshaped = [f"{name}: {expected[name]} -> {found[name]}" for name in shared if found[name] != expected[name]]
    raise ValueError(
        "the policy's weights are no longer those that the vLLM engine was built for: "
        f"missing {missing[:3]}, unknown {unknown[:3]}, changed in shape {reshaped[:3]}. "
        "Change the model before training starts, not during it."
    )


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
