"""Attention over packed sequences, as one more implementation of transformers' attention interface.

A model whose attention goes through that interface needs no change: ``install_packed_attention`` selects the
implementation, and a forward pass with ``packing=Packing(...)`` among its keyword arguments is packed. Keyword
arguments reach every layer, also when gradient checkpointing runs the layer again during the backward pass. A forward
pass without ``packing`` behaves as before.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from grpo_lightning.numerics.deterministic_gather import rows_at
from grpo_lightning.numerics.dtypes import autocast_dtype
from grpo_lightning.scoring.blocks import Packing

logger = logging.getLogger(__name__)

MAX_VARLEN_HEAD_DIM = 256
"""The flash kernels behind ``varlen_attn`` know no wider heads."""
VARLEN_ASKS_FOR_GQA = "enable_gqa" in signature(varlen_attn).parameters
"""False for torch 2.11, whose kernels share key heads among query heads without being asked."""


def install_packed_attention(model: PreTrainedModel) -> str:
    """Makes the model's attention understand ``packing=``; returns the name of the implementation it had.

    Calls without ``packing`` go to what the model used before, where that is ``eager``, else to ``sdpa``. A model with
    a soft cap on its scores goes to ``eager``: transformers' ``sdpa`` leaves the cap out, so it is another model.
    """
    previous: str = model.config._attn_implementation
    softcap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    eager = previous.endswith("eager") or softcap is not None
    model.set_attn_implementation("packed_eager" if eager else "packed_sdpa")
    return previous


def activate_flash_attention_3(device: torch.device) -> bool:
    """Puts FlashAttention 3 behind ``varlen_attn`` where its package is installed and the GPU is a Hopper.

    ``torch.nn.attention.restore_flash_attention_impl`` undoes it.

    Returns:
        Whether FlashAttention 3 is active.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return False
    if find_spec("flash_attn_interface") is None:
        return False
    try:
        torch.nn.attention.activate_flash_attention_impl("FA3")
    except (ImportError, OSError, RuntimeError) as error:  # a package that was built for another torch, for example
        logger.warning("FlashAttention 3 is installed and cannot be used: %s", error)
        return False
    return True


def packed_attention(
    base: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of one layer with the signature that transformers gives attention functions.

    Args:
        base: The implementation of calls that are not packed, ``sdpa`` or ``eager``.
        module: The attention layer.
        query: ``(1, heads, L, D)``.
        key, value: ``(1, key heads, L, D)``; each key head serves ``heads / key heads`` query heads.
        attention_mask: When packed the placeholder that the model was called with, of one element.
        packing: Which tokens see which.
        **kwargs: ``scaling``, ``dropout``, ``sliding_window``, ``softcap``, ``s_aux`` (sinks) as the model passes them.

    Returns:
        ``(1, L, heads, D)`` and no attention weights.

    Raises:
        NotImplementedError: If the layer asks for something that the packed kernels do not do.
    """
    if packing is None:
        if base == "eager":  # each model file has its own eager function and none is registered
            attend = sys.modules[type(module).__module__].eager_attention_forward
        else:
            attend = ALL_ATTENTION_FUNCTIONS[base]
        return attend(module, query, key, value, attention_mask, **kwargs)
    _refuse_unsupported(module, query, attention_mask, kwargs)
    window, softcap, sinks = kwargs.get("sliding_window"), kwargs.get("softcap"), kwargs.get("s_aux")
    scale = kwargs["scaling"] if kwargs.get("scaling") is not None else query.shape[-1] ** -0.5
    dtype = compute_dtype(value)
    q, k, v = (tensor.squeeze(0).transpose(0, 1).to(dtype) for tensor in (query, key, value))  # (L, heads, D)
    obstacle = _varlen_obstacle(q, softcap, sinks)
    if not torch.compiler.is_compiling():  # compiled layers share their code, and these notes are of each
        packing.windows.append(window)
        packing.slow_path = obstacle
    if obstacle is None:
        return _varlen(q, k, v, packing, scale, window)[None], None
    return _in_blocks(q, k, v, packing, Scores(scale, window, softcap, sinks))[None], None


def _refuse_unsupported(
    module: nn.Module, query: Tensor, attention_mask: Tensor | None, kwargs: dict[str, Any]
) -> None:
    if attention_mask is not None and attention_mask.numel() > 1:
        raise NotImplementedError(
            f"packed attention does not know the mask that {type(module).__name__} makes of its own"
        )
    if query.shape[0] != 1:
        raise NotImplementedError(f"packed attention expects one packed row, got {query.shape[0]}")
    if kwargs.get("dropout"):
        raise NotImplementedError(f"packed attention has no dropout, the model asks for {kwargs['dropout']}")
    if not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
        raise NotImplementedError(f"packed attention is causal, {type(module).__name__} is not")
    extra = [name for name in ("position_bias", "cache") if kwargs.get(name) is not None]
    if extra:
        raise NotImplementedError(f"packed attention does not know the argument {extra[0]} of {type(module).__name__}")


def compute_dtype(value: Tensor) -> torch.dtype:
    """What products of these values are computed in: autocast's dtype inside autocast, else that of the values.

    Queries and keys may be wider: under autocast they leave the rotary embedding, whose cosines are float32, in float32.
    """
    return autocast_dtype(value) or value.dtype


def _varlen_obstacle(query: Tensor, softcap: float | None, sinks: Tensor | None) -> str | None:
    """Why the flash kernel does not take these queries; None if it does."""
    if not query.is_cuda:
        return f"flash attention runs on a GPU, and training runs on {query.device.type}"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"flash attention computes in half precision, and this run in {str(query.dtype).removeprefix('torch.')}"
    if softcap is not None:
        return "flash attention knows no soft cap on the scores (attn_logit_softcapping)"
    if sinks is not None:
        return "flash attention of torch knows no attention sinks"
    if query.shape[-1] > MAX_VARLEN_HEAD_DIM:
        return (
            f"flash attention knows no heads wider than {MAX_VARLEN_HEAD_DIM}, and this model's have {query.shape[-1]}"
        )
    return None


def _varlen(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float, window: int | None) -> Tensor:
    """One flash kernel over all spans; keys are gathered so that each span's lie together."""
    options: dict[str, Any] = {}
    if packing.key_index is not None:
        key, value = (rows_at(tensor, packing.key_index, packing.key_inverse) for tensor in (key, value))
    if key.shape[1] != query.shape[1] and VARLEN_ASKS_FOR_GQA:
        options["enable_gqa"] = True
    # transformers counts the query's own position into the window, flash counts the keys before it.
    left = -1 if window is None else window - 1
    output = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        packing.cu_seq_q,
        packing.cu_seq_k,
        packing.max_q,
        packing.max_k,
        scale=scale,
        window_size=(left, 0),
        **options,
    )
    assert isinstance(output, Tensor)  # the normalizers come along only when asked for
    return output


@dataclass(frozen=True)
class Scores:
    """How scores become weights."""

    scale: float
    window: int | None
    """Tokens that a query sees, itself included; None for all before it."""
    softcap: float | None
    """Gemma 2's bound on the scores."""
    sinks: Tensor | None
    """(heads,): what a softmax has in its sum beside the scores (gpt-oss), and no value belongs to."""


@torch.compiler.disable  # sizes and indices of blocks are others in every micro-batch
def _in_blocks(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scores: Scores) -> Tensor:
    """The same on any device and in any precision: spans of similar length padded to blocks, block by block."""
    blocks, order = packing.blocks()
    window, scale, outputs = scores.window, scores.scale, []
    for index, block in enumerate(blocks):
        q = rows_at(query, block.query_index).transpose(1, 2)  # (n, heads, Q, D)
        k, v = (rows_at(tensor, block.key_index).transpose(1, 2) for tensor in (key, value))
        if scores.softcap is not None or scores.sinks is not None:
            attended = _written_out(q, k, v, packing.mask(index, window, q.dtype), scores)
        elif block.causal and (window is None or window >= packing.max_k):
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        else:
            mask = packing.mask(index, window, q.dtype)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[order]


def _written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scores: Scores) -> Tensor:
    """Attention with a bound on the scores, or with sinks, ``(n, heads, Q, D)``."""
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    raw = q @ k.transpose(2, 3)
    if scores.softcap is None:
        raw = raw * scores.scale + mask
    else:
        raw = torch.tanh(raw * (scores.scale / scores.softcap)) * scores.softcap + mask
    if scores.sinks is not None:
        sinks = scores.sinks.to(raw.dtype)[:, None, None].expand(*raw.shape[:3], 1)
        raw = torch.cat([raw, sinks], dim=-1)
    weights = raw.softmax(-1, dtype=torch.promote_types(raw.dtype, torch.float32))[..., : k.shape[2]]
    return weights.to(q.dtype) @ v


for _base in ("sdpa", "eager"):
    AttentionInterface.register(f"packed_{_base}", partial(packed_attention, _base))
    AttentionMaskInterface.register(f"packed_{_base}", ALL_MASK_ATTENTION_FUNCTIONS[_base])
