"""Attention of one new token per row, without copying the keys of grouped-query models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "grpo_lightning_decode"
SDPA_NAMES = ("sdpa", "packed_sdpa")
"""Attentions that compute what ``sdpa`` does while sampling: the second is a policy's after its first training pass."""


def decode_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The ``sdpa`` of transformers, with a shortcut for one query per row and fewer key heads than query heads.

    With a padding mask, transformers copies the keys and values once per query head of their group, at every token:
    on a CPU that takes over ten times as long as the attention itself. Here the query heads of a group become the
    queries of one attention over the group's keys.

    Args:
        module: The attention layer.
        query: ``(n, heads, q, head size)``.
        key: ``(n, key heads, length, head size)``.
        value: As ``key``.
        attention_mask: ``(n, 1, q, length)``, True or 0 where a key is visible, or None for all.
        kwargs: As transformers passes them.

    Returns:
        ``(n, q, heads, head size)``, and None for the attention weights.
    """
    size, heads, queries, width = query.shape
    key_heads = key.shape[1]
    if queries > 1 or key_heads == heads or kwargs.get("position_bias") is not None:
        output, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)
        return output, None
    grouped = query.reshape(size, key_heads, heads // key_heads, width)
    output = F.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling"))
    return output.reshape(size, 1, heads, value.shape[-1]), None


AttentionInterface.register(NAME, decode_attention)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@contextmanager
def fast_decode_attention(policy: PreTrainedModel) -> Iterator[None]:
    """Lets a policy whose attention is ``sdpa`` decode with ``decode_attention``; leaves every other attention alone.

    Models of several parts (vision and text) keep theirs too.
    """
    config = policy.config
    previous = config._attn_implementation
    if previous not in SDPA_NAMES or config.sub_configs:
        yield
        return
    policy.set_attn_implementation(NAME)
    try:
        yield
    finally:
        policy.set_attn_implementation(previous)
