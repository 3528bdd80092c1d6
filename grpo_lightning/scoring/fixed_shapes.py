"""Packed batches brought to one of few shapes, as recorded kernels need: tokens nobody reads, and spans without any."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grpo_lightning.numerics.deterministic_gather import Inverse
from grpo_lightning.scoring.blocks import Packing
from grpo_lightning.scoring.packing import AttentionSpans, PackedBatch

TOKEN_STEPS = 16
"""Numbers of tokens that shapes have between one power of two and the next: padding adds less than 1/16 to 512 tokens or more."""
KEY_STEPS = 8
"""The same for keys, which padding adds to gathers alone."""
SMALLEST = 256
"""Power of two that numbers are rounded within, or up to where there is one step."""
SMALLEST_STEP = 16
"""Kernels are compiled anew for sizes that 16 does not divide."""


@dataclass(frozen=True)
class Shape:
    """What passes over a packed row have in common when the same kernels serve them."""

    tokens: int
    keys: int | None
    """Gathered for all spans together; None where none are gathered."""
    spans: int
    longest_queries: int
    """No span has more queries, or keys below."""
    longest_keys: int


def shape_of(batch: PackedBatch) -> Shape:
    """The smallest shape that holds a batch."""
    spans = batch.spans
    tokens = _rounded(int(spans.cu_seq_q[-1]), TOKEN_STEPS)
    padding = tokens - int(spans.cu_seq_q[-1])
    longest = [_rounded(max(int(starts.diff().max()), padding), 1) for starts in (spans.cu_seq_q, spans.cu_seq_k)]
    keys = None if spans.key_index is None else _rounded(int(spans.cu_seq_k[-1]) + padding, KEY_STEPS)
    return Shape(tokens, keys, _rounded(len(spans.cu_seq_q), 1), *longest)


def _rounded(number: int, steps: int) -> int:
    """Up to one of so many numbers between a power of two and the next, or to the next where there is one."""
    power = 1 << max(number - 1, SMALLEST - 1).bit_length()
    step = power if steps == 1 else max(power // 2 // steps, SMALLEST_STEP)
    return -(-number // step) * step


def filled(batch: PackedBatch, shape: Shape) -> PackedBatch:
    """The batch with tokens behind it that make a span of their own, and spans of no token behind that.

    Args:
        batch: Which the shape holds.
        shape: Of the result. ``score_index`` stays, so that nothing is read of what was added; ``times`` is 0 there.
    """
    spans = batch.spans
    tokens, keys = int(spans.cu_seq_q[-1]), int(spans.cu_seq_k[-1])
    padding = shape.tokens - tokens
    key_index = None
    if spans.key_index is not None and shape.keys is not None:
        own = torch.arange(tokens, shape.tokens)
        key_index = _longer(torch.cat([spans.key_index, own]), shape.keys, 0)
    return replace(
        batch,
        input_ids=_longer(batch.input_ids, shape.tokens, 0),
        position_ids=_longer(batch.position_ids, shape.tokens, 0),
        spans=AttentionSpans(
            _longer(spans.cu_seq_q, shape.spans + 1, shape.tokens),
            _longer(spans.cu_seq_k, shape.spans + 1, keys + padding),
            key_index,
        ),
        times=_longer(batch.times, shape.tokens, 0),
        source_index=_longer(batch.source_index, shape.tokens, 0),
    )


def with_room(packing: Packing, shape: Shape) -> Packing:
    """A packing with room for any batch of its shape."""
    packing.max_q, packing.max_k, packing.is_of_one_batch = shape.longest_queries, shape.longest_keys, False
    inverse = packing.key_inverse
    if inverse is not None and shape.keys is not None:
        room = inverse.order.new_zeros(shape.keys)
        room[: len(inverse.order)] = inverse.order
        packing.key_inverse = Inverse(room, inverse.starts)
    return packing


def _longer(tensor: Tensor, length: int, value: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, length - len(tensor)), value=value)
