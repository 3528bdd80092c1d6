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
from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.scoring.packing import Segments

logger = logging.getLogger(__name__)

MAX_VARLEN_HEAD_DIM = 256
"""The flash kernels behind ``varlen_attn`` know no wider heads."""
BLOCK_SHRINK = 0.75
"""A block of the padded form takes segments down to this fraction of its longest: little padding, few blocks."""
BLOCK_ELEMENTS = 2**22
"""Attention scores of one head of one block: bounds the mask's memory."""
VARLEN_ASKS_FOR_GQA = "enable_gqa" in signature(varlen_attn).parameters
"""False for torch 2.11, whose kernels share key heads among query heads without being asked."""


class Packing:
    """``Segments`` on a device, in the forms that the kernels want; built once per micro-batch, used by every layer."""

    def __init__(self, segments: Segments, device: torch.device | str = "cpu") -> None:
        """Copies the indices to ``device``; derived forms are built when a layer first asks for them."""
        self.segments = segments
        self.device = torch.device(device)
        queries, keys = segments.cu_seq_q.diff(), segments.cu_seq_k.diff()
        self.max_q, self.max_k = (int(lengths.max()) if len(lengths) else 0 for lengths in (queries, keys))
        self.cu_seq_q, self.cu_seq_k = self._move(segments.cu_seq_q), self._move(segments.cu_seq_k)
        self.key_index = None if segments.key_index is None else self._move(segments.key_index)
        self.windows: list[int | None] = []
        """The sliding window that each layer asked for, in order of the calls."""
        self.slow_path: str | None = None
        """Why the last layer was computed in padded blocks; None if one flash kernel did it."""
        self._blocks: list[_Block] | None = None
        self._masks: dict[tuple[int, int | None, torch.dtype], Tensor] = {}

    def blocks(self) -> tuple[list[_Block], Tensor]:
        """The padded form, and for each packed token its place in the blocks' outputs laid end to end."""
        if self._blocks is None:
            self._blocks, order = _padded_blocks(self.segments)
            for block in self._blocks:
                block.query_index, block.key_index = self._move(block.query_index), self._move(block.key_index)
                block.query_position = self._move(block.query_position)
            self._order = self._move(order)
        return self._blocks, self._order

    def mask(self, index: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """(n, 1, Q, K) additive mask of one block: 0 where a query sees a key, else minus infinity."""
        if (index, window, dtype) not in self._masks:
            block = self.blocks()[0][index]
            position = block.query_position[:, :, None]
            keys = torch.arange(block.key_index.shape[1], device=self.device)
            visible = keys <= position
            if window is not None:
                visible &= keys > position - window
            mask = torch.zeros(visible.shape, dtype=dtype, device=self.device).masked_fill_(~visible, -torch.inf)
            self._masks[index, window, dtype] = mask[:, None]
        return self._masks[index, window, dtype]

    def _move(self, tensor: Tensor) -> Tensor:
        return to_device(tensor, self.device)


@dataclass
class _Block:
    """n segments of similar length, padded to Q queries and K keys. Padding repeats token 0 and is never read."""

    query_index: Tensor
    """(n, Q) int64 packed positions."""
    key_index: Tensor
    """(n, K) int64 packed positions."""
    query_position: Tensor
    """(n, Q) int64: the last key that the query sees."""
    causal: bool
    """True where query i sees keys 0 to i in every segment, so that no mask is needed without a window."""


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
        attention_mask: Not looked at when packed.
        packing: Which tokens see which.
        **kwargs: ``scaling``, ``dropout``, ``sliding_window``, ``softcap`` as the model passes them.

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
    _refuse_unsupported(module, query, kwargs)
    window, softcap = kwargs.get("sliding_window"), kwargs.get("softcap")
    packing.windows.append(window)
    scale = kwargs["scaling"] if kwargs.get("scaling") is not None else query.shape[-1] ** -0.5
    dtype = compute_dtype(value)
    q, k, v = (tensor[0].transpose(0, 1).to(dtype) for tensor in (query, key, value))  # (L, heads, D)
    packing.slow_path = _varlen_obstacle(q, softcap)
    if packing.slow_path is None:
        return _varlen(q, k, v, packing, scale, window)[None], None
    return _in_blocks(q, k, v, packing, scale, window, softcap)[None], None


def _refuse_unsupported(module: nn.Module, query: Tensor, kwargs: dict[str, Any]) -> None:
    if query.shape[0] != 1:
        raise NotImplementedError(f"packed attention expects one packed row, got {query.shape[0]}")
    if kwargs.get("dropout"):
        raise NotImplementedError(f"packed attention has no dropout, the model asks for {kwargs['dropout']}")
    if not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
        raise NotImplementedError(f"packed attention is causal, {type(module).__name__} is not")
    extra = [name for name in ("s_aux", "position_bias", "cache") if kwargs.get(name) is not None]
    if extra:
        raise NotImplementedError(f"packed attention does not know the argument {extra[0]} of {type(module).__name__}")


def compute_dtype(value: Tensor) -> torch.dtype:
    """What attention computes in: autocast's dtype inside autocast, else that of the values.

    Queries and keys may be wider: under autocast they leave the rotary embedding, whose cosines are float32, in float32.
    """
    device = value.device.type
    is_cast = torch.is_autocast_enabled(device) and value.dtype != torch.float64  # which autocast leaves alone
    return torch.get_autocast_dtype(device) if is_cast else value.dtype


def _varlen_obstacle(query: Tensor, softcap: float | None) -> str | None:
    """Why the flash kernel does not take these queries; None if it does."""
    if not query.is_cuda:
        return f"flash attention runs on a GPU, and training runs on {query.device.type}"
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"flash attention computes in half precision, and this run in {str(query.dtype).removeprefix('torch.')}"
    if softcap is not None:
        return "flash attention knows no soft cap on the scores (attn_logit_softcapping)"
    if query.shape[-1] > MAX_VARLEN_HEAD_DIM:
        return (
            f"flash attention knows no heads wider than {MAX_VARLEN_HEAD_DIM}, and this model's have {query.shape[-1]}"
        )
    return None


def _varlen(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float, window: int | None) -> Tensor:
    """One flash kernel over all segments; keys are gathered so that each segment's lie together."""
    options: dict[str, Any] = {}
    if packing.key_index is not None:
        key, value = rows_at(key, packing.key_index), rows_at(value, packing.key_index)
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


def _in_blocks(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """The same on any device and in any precision: segments of similar length padded to blocks, block by block."""
    blocks, order = packing.blocks()
    outputs = []
    for index, block in enumerate(blocks):
        q = rows_at(query, block.query_index).transpose(1, 2)  # (n, heads, Q, D)
        k, v = (rows_at(tensor, block.key_index).transpose(1, 2) for tensor in (key, value))
        if softcap is not None:
            attended = _softcapped(q, k, v, packing.mask(index, window, q.dtype), scale, softcap)
        elif block.causal and (window is None or window >= packing.max_k):
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        else:
            mask = packing.mask(index, window, q.dtype)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[order]


def _softcapped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float) -> Tensor:
    """Attention with Gemma 2's bound on the scores, ``(n, heads, Q, D)``."""
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scores = torch.tanh(q @ k.transpose(2, 3) * (scale / softcap)) * softcap + mask
    return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v


def _padded_blocks(segments: Segments) -> tuple[list[_Block], Tensor]:
    """Segments sorted by length and cut into blocks; the tokens' places in the blocks, end to end, ``(L,)``."""
    cu_q, cu_k = segments.cu_seq_q.long(), segments.cu_seq_k.long()
    queries, keys = cu_q.diff(), cu_k.diff()
    key_source = torch.arange(int(cu_q[-1])) if segments.key_index is None else segments.key_index
    blocks, places, start = [], torch.empty(int(cu_q[-1]), dtype=torch.int64), 0
    for members in _similar_segments(queries.tolist(), keys.tolist()):
        q_len, k_len = queries[members], keys[members]
        width, key_width = int(q_len.max()), int(k_len.max())
        offsets = torch.arange(width)
        real = offsets < q_len[:, None]
        query_index = torch.where(real, cu_q[members][:, None] + offsets, 0)
        key_offsets = torch.arange(key_width)
        key_at = torch.where(key_offsets < k_len[:, None], cu_k[members][:, None] + key_offsets, 0)
        position = torch.minimum((k_len - q_len)[:, None] + offsets, k_len[:, None] - 1)
        blocks.append(_Block(query_index, key_source[key_at], position, bool((q_len == k_len).all())))
        places[query_index[real]] = start + real.flatten().nonzero()[:, 0]
        start += real.numel()
    return blocks, places


def _similar_segments(queries: list[int], keys: list[int]) -> list[list[int]]:
    """Segment numbers, longest first, in runs that waste little when padded to their longest."""
    runs: list[list[int]] = []
    width = tallest = 0
    for segment in sorted(
        range(len(queries)), key=lambda s: (keys[s] == queries[s], queries[s], keys[s]), reverse=True
    ):
        same_kind = runs and (keys[segment] == queries[segment]) == (keys[runs[-1][0]] == queries[runs[-1][0]])
        longest_key = max(tallest, keys[segment])
        small = runs and (len(runs[-1]) + 1) * width * longest_key <= BLOCK_ELEMENTS
        if same_kind and small and queries[segment] >= BLOCK_SHRINK * width:
            runs[-1].append(segment)
            tallest = longest_key
        else:
            runs.append([segment])
            width, tallest = queries[segment], keys[segment]
    return runs


for _base in ("sdpa", "eager"):
    AttentionInterface.register(f"packed_{_base}", partial(packed_attention, _base))
    AttentionMaskInterface.register(f"packed_{_base}", ALL_MASK_ATTENTION_FUNCTIONS[_base])
