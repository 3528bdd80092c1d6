"""Adapters over a frozen base: what they add up to, read out without ever writing to the base.

Merging into the base in place and taking the adapter out again drifts: in bfloat16 the weights had moved by 0.015 after
1,000 rounds. So every merged tensor here is a new one, computed from the base as it was loaded.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn

from grpo_lightning.finetuning.quantization import dequantized, outline
from grpo_lightning.numerics.output_head import base_model

EMBEDDING_WORDS = ("lm_head", "embed_tokens", "wte", "embed_out")
"""Last words of the names of embeddings and output heads, which engines do not hot-load."""

NOT_HOT = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "rank_pattern",
    "alpha_pattern",
    "alora_invocation_tokens",
    "layer_replication",
    "use_bdlora",
    "use_qalora",
)
"""Options of peft's LoraConfig with which engines do not hot-load an adapter."""
ADAPTER_ONLY_STARTS = ("gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base as it is."""


def is_adapted(model: nn.Module) -> bool:
    """True for a model with adapters, LoRA or another method of peft."""
    return isinstance(model, PeftModel)


@torch.no_grad()
def merged_state_dict(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the model with its adapters added in, under the names of the base model, one at a time.

    A full-precision model gives its own weights. LoRA is added in float32 and rounded once, to the dtype of the base;
    4-bit weights are dequantised, and the sum is not quantised again, so it is what the forward pass computes with.
    Tied weights come under each of their names, as in ``state_dict``. The model is left as it was.

    Args:
        model: The policy: a transformers model, or a PEFT model around one.

    Returns:
        Pairs of name and tensor on the model's device. Tensors without adapters are the model's own: do not write to
        them.

    Raises:
        RuntimeError: If an adapter has been merged into the base in place, which would count it twice.
    """
    yield from _merged_entries(base_model(model), "")


def merged_outlines(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What ``merged_state_dict`` yields, in its order, as empty tensors on the meta device: adapters change no shape and no dtype.

    Nothing is merged, dequantised or gathered, so one rank of several may ask for it.
    """
    yield from _merged_entries(base_model(model), "", is_outlined=True)


def _merged_entries(module: nn.Module, prefix: str, is_outlined: bool = False) -> Iterator[tuple[str, Tensor]]:
    if isinstance(module, ModulesToSaveWrapper):
        trained = module.modules_to_save[module.active_adapters[0]] if module.active_adapters else None
        yield from _merged_entries(module.original_module if trained is None else trained, prefix, is_outlined)
        return
    layer: Any = module.token_adapter if isinstance(module, TrainableTokensWrapper) else module
    if isinstance(layer, BaseTunerLayer):
        base = layer.get_base_layer()
        yield from _merged_entries(base, prefix, is_outlined) if is_outlined else _merged_layer(layer, prefix)
    else:
        kept = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
        for name, tensor in (module._parameters | kept).items():
            if tensor is not None:
                yield f"{prefix}{name}", outline(tensor) if is_outlined else dequantized(tensor)
        for name, child in module.named_children():
            yield from _merged_entries(child, f"{prefix}{name}.", is_outlined)


def _merged_layer(layer: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The base layer's own entries, with the active adapters added to its weight."""
    if layer.merged:
        raise RuntimeError(
            f"The adapter is already merged into {prefix.rstrip('.')}: adding it again would count it twice. Do not "
            "call merge_adapter on the policy; merged tensors are made from the untouched base."
        )
    base = layer.get_base_layer()
    if not _is_read_out(layer):
        if isinstance(getattr(base, "weight", None), Tensor) and base.weight.dtype == torch.uint8:
            raise ValueError(
                f"{type(layer).__name__} at {prefix.rstrip('.')} is not plain LoRA and cannot be merged from a 4-bit "
                "base. Use plain LoRA in model.peft_config, or finetuning_type: lora."
            )
        copied = copy.deepcopy(layer)
        for inner in reversed([m for m in copied.modules() if isinstance(m, BaseTunerLayer)]):
            inner.merge()
        yield from _merged_entries(copied.get_base_layer(), prefix)
        return
    for name, tensor in _merged_entries(base, prefix):
        yield name, _read_out(layer, tensor) if name == f"{prefix}weight" else tensor


def _is_read_out(layer: Any) -> bool:
    """Whether ``_read_out`` knows the sum: W + scaling * B A and nothing else (no DoRA, no bias of its own), or W with rows of its own."""
    if isinstance(layer, TrainableTokensLayer):
        return True
    if not isinstance(layer, LoraLayer) or layer.lora_variant or any(layer.lora_bias.values()):
        return False
    return isinstance(getattr(layer.get_base_layer(), "weight", None), Tensor)


def _read_out(layer: Any, weight: Tensor) -> Tensor:
    if isinstance(layer, TrainableTokensLayer):
        return layer.get_merged_weights(layer.active_adapters)
    adapters = [name for name in layer.active_adapters if name in layer.scaling]
    total = weight.float()
    for name in adapters:
        total = total + layer.get_delta_weight(name).float()
    return total.to(weight.dtype)


@dataclass(frozen=True)
class AdapterState:
    """An adapter as it is saved: what ``adapter_config.json`` and ``adapter_model.safetensors`` hold."""

    config: dict[str, Any]
    """peft's configuration as plain values."""
    tensors: dict[str, Tensor]
    """``base_model.model....lora_A.weight`` and so on. The live tensors, detached: not copies."""


def adapter_state(model: nn.Module) -> AdapterState:
    """The active LoRA adapter of a PEFT model, for an engine that adds it to the base itself."""
    if not isinstance(model, PeftModel):
        raise ValueError("The policy has no adapter: finetuning_type is full. Transfer merged_state_dict instead.")
    adapter = model.active_adapter
    # Not get_peft_model_state_dict: it builds the state of the whole model, ten times as long as this.
    in_adapter = re.compile(rf"(\.lora_[^.]+)\.{re.escape(adapter)}(?=\.|$)")
    tensors = {
        in_adapter.sub(r"\1", name): parameter.detach()
        for name, parameter in model.named_parameters()
        if in_adapter.search(name)
    }
    return AdapterState(plain_config(model.peft_config[adapter]), tensors)


def plain_config(config: Any) -> dict[str, Any]:
    """A peft configuration as JSON holds it: sets sorted into lists, enumerations by value."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, set | frozenset):
            return sorted(plain(item) for item in value)
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return getattr(value, "value", value)

    return {name: plain(value) for name, value in config.to_dict().items()}


def hot_load_obstacle(model: nn.Module) -> str | None:
    """What keeps an engine from adding the adapter to its own copy of the base; None where nothing does.

    vLLM takes LoRA matrices on linear layers; trained heads, embeddings or token rows, DoRA and biases it rejects. It is
    asked for nothing that one of its versions reads otherwise: 0.25 scales all layers alike, whatever the patterns say.
    """
    if not isinstance(model, PeftModel):
        return "the policy has no adapter"
    config = model.peft_config[model.active_adapter]
    if config.peft_type != PeftType.LORA:
        return f"the adapter is {config.peft_type.value}, not LoRA"
    for option in NOT_HOT:
        if getattr(config, option, None):
            return f"the adapter has {option}"
    if isinstance(config.init_lora_weights, str) and config.init_lora_weights.lower() not in ADAPTER_ONLY_STARTS:
        return f"the adapter has init_lora_weights={config.init_lora_weights}, which changes the base"
    if config.bias != "none":
        return f"the adapter has bias={config.bias}"
    names = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    heads = sorted({name.rsplit(".", 1)[-1] for name in names} & set(EMBEDDING_WORDS))
    return f"the adapter changes {', '.join(heads)}" if heads else None


def adapter_rank(model: nn.Module) -> int:
    """The largest rank of the adapter's LoRA layers (``max_lora_rank`` of an engine); 0 without LoRA."""
    ranks = (rank for module in model.modules() if isinstance(module, LoraLayer) for rank in module.r.values())
    return max(ranks, default=0)
