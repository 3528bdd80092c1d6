"""Spans of a packed row padded to blocks of similar length, for devices and precisions without a ragged kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_lightning.numerics.deterministic_gather import inverse_of
from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.scoring.packing import AttentionSpans

BLOCK_SHRINK = 0.75
"""A block of the padded form takes spans down to this fraction of its longest: little padding, few blocks."""
BLOCK_ELEMENTS = 2**22
"""Attention scores of one head of one block: bounds the mask's memory."""


class Packing:
    """``AttentionSpans`` on a device, in the forms that the kernels want; built once per micro-batch, used by every layer."""

    def __init__(self, spans: AttentionSpans, device: torch.device | str = "cpu") -> None:
        """Copies the indices to ``device``; derived forms are built when a layer first asks for them."""
        self.spans = spans
        self.device = torch.device(device)
        queries, keys = spans.cu_seq_q.diff(), spans.cu_seq_k.diff()
        self.max_q, self.max_k = (int(lengths.max()) if len(lengths) else 0 for lengths in (queries, keys))
        self.cu_seq_q, self.cu_seq_k = self._move(spans.cu_seq_q), self._move(spans.cu_seq_k)
        self.key_index = None if spans.key_index is None else self._move(spans.key_index)
        read = None if self.key_index is None else self.key_index[: int(spans.cu_seq_k[-1])]
        self.key_inverse = None if read is None else inverse_of(read, int(spans.cu_seq_q[-1]))
        """Of ``key_index``: every layer's keys and values need it in the backward pass."""
        self.windows: list[int | None] = []
        """The sliding window that each layer asked for, in order of the calls."""
        self.slow_path: str | None = None
        """Why the last layer was computed in padded blocks; None if one flash kernel did it."""
        self.is_of_one_batch = True
        """False where the indices on the device are replaced by those of other batches: blocks would stay those of the first."""
        self._blocks: list[_Block] | None = None
        self._masks: dict[tuple[int, int | None, torch.dtype], Tensor] = {}

    def blocks(self) -> tuple[list[_Block], Tensor]:
        """The padded form, and for each packed token its place in the blocks' outputs laid end to end.

        Raises:
            RuntimeError: For a packing of several batches.
        """
        if not self.is_of_one_batch:
            raise RuntimeError("attention in padded blocks, without a flash kernel, has other indices in every batch")
        if self._blocks is None:
            self._blocks, order = _padded_blocks(self.spans)
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
    """n spans of similar length, padded to Q queries and K keys. Padding repeats token 0 and is never read."""

    query_index: Tensor
    """(n, Q) int64 packed positions."""
    key_index: Tensor
    """(n, K) int64 packed positions."""
    query_position: Tensor
    """(n, Q) int64: the last key that the query sees."""
    causal: bool
    """True where query i sees keys 0 to i in every span, so that no mask is needed without a window."""


def _padded_blocks(spans: AttentionSpans) -> tuple[list[_Block], Tensor]:
    """Spans sorted by length and cut into blocks; the tokens' places in the blocks, end to end, ``(L,)``."""
    cu_q, cu_k = spans.cu_seq_q.long(), spans.cu_seq_k.long()
    queries, keys = cu_q.diff(), cu_k.diff()
    key_source = torch.arange(int(cu_q[-1])) if spans.key_index is None else spans.key_index
    blocks, places, start = [], torch.empty(int(cu_q[-1]), dtype=torch.int64), 0
    for members in _similar_spans(queries.tolist(), keys.tolist()):
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


def _similar_spans(queries: list[int], keys: list[int]) -> list[list[int]]:
    """Segment numbers, longest first, in runs that waste little when padded to their longest."""
    runs: list[list[int]] = []
    width = tallest = 0
    for span in sorted(range(len(queries)), key=lambda s: (keys[s] == queries[s], queries[s], keys[s]), reverse=True):
        same_kind = runs and (keys[span] == queries[span]) == (keys[runs[-1][0]] == queries[runs[-1][0]])
        longest_key = max(tallest, keys[span])
        small = runs and (len(runs[-1]) + 1) * width * longest_key <= BLOCK_ELEMENTS
        if same_kind and small and queries[span] >= BLOCK_SHRINK * width:
            runs[-1].append(span)
            tallest = longest_key
        else:
            runs.append([span])
            width, tallest = queries[span], keys[span]
    return runs
