"""The policy's weights on their way to an inference engine: whole tensors under checkpoint names, one at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from grpo_lightning.distributed.sharding import whole
from grpo_lightning.finetuning.adapters import hot_load_obstacle, is_adapted, merged_outlines, merged_state_dict
from grpo_lightning.finetuning.quantization import dequantized, outline
from grpo_lightning.generation.vllm.weights.published_names import as_published

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
