"""Packed attention for verl where flash-attn is not installed: the same FlashAttention 2 kernels, as torch ships them.

verl gives its models one packed row and ``position_ids`` that begin at 0 with each sequence, which transformers' own
``flash_attention_2`` turns into sequence bounds. ``sdpa`` would compute a dense mask of all tokens by all tokens instead.
``actor_rollout_ref.model.external_lib`` imports this module in every worker.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

NAME = "torch_varlen"

_latest: tuple[Tensor, Tensor, int] | None = None
"""Positions, their bounds and longest sequence: all layers of a pass ask for the same."""


def bounds(position_ids: Tensor) -> tuple[Tensor, int]:
    """Where packed sequences begin, and the length of the longest.

    Args:
        position_ids: ``(1, L)``, 0 at the beginning of each sequence.

    Returns:
        ``(sequences + 1,)`` int32, from 0 to L, and the length.
    """
    global _latest
    if _latest is None or _latest[0] is not position_ids:
        flat = position_ids.flatten()
        starts = (flat == 0).nonzero().flatten()
        ends = torch.cat([starts, starts.new_tensor([flat.numel()])]).int()
        _latest = position_ids, ends, int(ends.diff().max())
    return _latest[1], _latest[2]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence of a packed row, with the signature that transformers gives attention.

    Args:
        module: The attention layer.
        query: ``(1, heads, L, D)``.
        key, value: ``(1, key heads, L, D)``.
        attention_mask: None.
        scaling: Of the scores.
        position_ids: ``(1, L)``.
        **kwargs: What else the model passes.

    Returns:
        ``(1, L, heads, D)`` and no attention weights.
    """
    assert attention_mask is None and position_ids is not None, "one packed row without a mask"
    cu_seq, longest = bounds(position_ids)
    q, k, v = (tensor.squeeze(0).transpose(0, 1).to(value.dtype).contiguous() for tensor in (query, key, value))
    output = varlen_attn(q, k, v, cu_seq, cu_seq, longest, longest, scale=scaling, window_size=(-1, 0))
    assert isinstance(output, Tensor)
    return output[None], None


AttentionInterface.register(NAME, attend)
