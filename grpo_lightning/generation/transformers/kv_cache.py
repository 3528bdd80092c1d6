"""What the layers keep of the rows being decoded: keys and values in buffers that rows can leave, and states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

ROWWISE_LAYERS = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)
"""Kinds of layers whose contents have one entry a row and nothing else: keys and values, or states, or both."""

ROOM = 64
"""Tokens by which a full buffer grows: one copy of the cache every 64 tokens instead of one every token."""


class BufferedLayer(DynamicLayer):
    """The growing layer of transformers, with room to grow into.

    ``DynamicLayer`` concatenates at every token, which copies the whole cache. This one writes the token into a buffer;
    ``keys`` and ``values``, ``(rows, heads, length, head size)``, are views of what is filled.
    """

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[Tensor] = []  # keys and values, each (at least rows, heads, at least length, head size)
        self._rows = self._length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends the new tokens and returns all of them."""
        rows, _, new, _ = key_states.shape
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [key_states, value_states]
            return self._show(rows, new)
        start, stop = self._length, self._length + new
        if stop > self._buffers[0].shape[-2]:
            self._buffers = [_with_room(filled, stop + ROOM) for filled in self._show(rows, start)]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, start:stop] = states
        return self._show(rows, stop)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row, as the G completions of a prompt need; they no longer share memory."""
        self._buffers = [
            _with_room(filled, self._length + ROOM, repeats) for filled in self._show(self._rows, self._length)
        ]
        self._show(self._rows * repeats, self._length)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows, in this order."""
        self._buffers = [filled[indices] for filled in self._show(self._rows, self._length)]
        self._show(len(indices), self._length)

    def move_rows(self, order: Tensor, moved: Tensor) -> None:
        """Puts row ``order[t]`` into place t for each t in ``moved``, and forgets all rows from ``len(order)`` on."""
        if len(moved):
            for filled in self._show(self._rows, self._length):
                filled[moved] = filled[order[moved]]
        self._show(len(order), self._length)

    def _show(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Makes the first ``rows`` rows and ``length`` tokens of the buffers the contents of the layer."""
        self._rows, self._length = rows, length
        keys, values = (buffer[:rows, :, :length] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values


def _with_room(states: Tensor, capacity: int, repeats: int = 1) -> Tensor:
    """A copy of ``states`` with every row repeated and ``capacity`` tokens of space."""
    rows, heads, length, size = states.shape
    buffer = states.new_empty(rows, repeats, heads, capacity, size)
    buffer[..., :length, :] = states.unsqueeze(1)
    return buffer.view(rows * repeats, heads, capacity, size)


def ragged_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for this model whose rows can be repeated and dropped.

    Raises:
        ValueError: If a layer keeps something that rows cannot be dropped from here.
    """
    cache = DynamicCache(config=config)
    others = sorted({type(layer).__name__ for layer in cache.layers if type(layer) not in ROWWISE_LAYERS})
    if others:
        raise ValueError(
            f"TransformersGenerator decodes models that cache keys and values or states, but the model_type "
            f"{config.model_type!r} also needs {', '.join(others)}. Use VLLMColocate as model.generator."
        )
    cache.layers = [BufferedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def repeat_rows(cache: DynamicCache, repeats: Tensor) -> None:
    """Repeats every row, as the completions of a prompt need.

    Args:
        cache: From ``ragged_cache``, of b rows.
        repeats: ``(b,)`` int64, 1 or more each.
    """
    counts = repeats.tolist()
    rows = torch.arange(len(repeats), device=repeats.device).repeat_interleave(repeats)
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer) and len(set(counts)) == 1:
            layer.batch_repeat_interleave(counts[0])
        elif isinstance(layer, DynamicLayer):
            layer.batch_select_indices(rows)
        for states, place in _states(layer):
            states[place] = states[place][rows]


def _states(layer: Any) -> list[tuple[dict[int, Any], int]]:
    """Where the convolution and recurrent states of a layer are, (rows, ...) each; nowhere if it has none."""
    if not isinstance(layer, LinearAttentionCacheLayerMixin):
        return []
    kinds: tuple[dict[int, Any], ...] = (layer.conv_states, layer.recurrent_states)
    return [(states, place) for states in kinds for place, state in states.items() if state is not None]


def keep_rows(cache: DynamicCache, order: Tensor, moved: Tensor) -> None:
    """Keeps the rows ``order``, in that order.

    Args:
        cache: From ``ragged_cache``.
        order: ``(n,)`` int64, the rows to keep. All but the moved ones stay where they are.
        moved: int64, the places below n whose row comes from a place at or after n: copying these few into the holes is
            cheaper than selecting all that is left.
    """
    for layer in cache.layers:
        if isinstance(layer, BufferedLayer):
            layer.move_rows(order, moved)
        elif isinstance(layer, DynamicLayer):
            layer.batch_select_indices(order)
        for states, place in _states(layer):
            states[place] = states[place][order]
