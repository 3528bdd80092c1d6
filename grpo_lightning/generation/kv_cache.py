"""The keys and values of the rows being decoded, in buffers that rows can leave."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

ROOM = 64
"""Tokens by which a full buffer grows: one copy of the cache every 64 tokens instead of one every token."""


class BufferedLayer(DynamicLayer):
    """transformers' growing layer with room to grow into.

    ``DynamicLayer`` concatenates at every token, which copies the whole cache. This one writes the token into a buffer;
    ``keys`` and ``values``, ``(rows, heads, length, head size)``, are views of what is filled.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends the new tokens and returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys = self._key_buffer = key_states
            self.values = self._value_buffer = value_states
            return key_states, value_states
        start = self.keys.shape[-2]
        stop = start + key_states.shape[-2]
        if stop > self._key_buffer.shape[-2]:
            self._key_buffer = _with_room(self.keys, stop + ROOM)
            self._value_buffer = _with_room(self.values, stop + ROOM)
        rows = self.keys.shape[0]
        self._key_buffer[:rows, :, start:stop] = key_states
        self._value_buffer[:rows, :, start:stop] = value_states
        self.keys, self.values = self._key_buffer[:rows, :, :stop], self._value_buffer[:rows, :, :stop]
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row, as the G completions of a prompt need; they no longer share memory."""
        length = self.get_seq_length()
        self._key_buffer = _with_room(self.keys, length + ROOM, repeats)
        self._value_buffer = _with_room(self.values, length + ROOM, repeats)
        self.keys, self.values = self._key_buffer[:, :, :length], self._value_buffer[:, :, :length]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps some rows, in any order."""
        super().batch_select_indices(indices)
        self._key_buffer, self._value_buffer = self.keys, self.values

    def move_rows(self, order: Tensor, moved: Tensor) -> None:
        """Puts row ``order[t]`` into place t for each t in ``moved``, and forgets all rows from ``len(order)`` on."""
        if len(moved):
            self.keys[moved] = self.keys[order[moved]]
            self.values[moved] = self.values[order[moved]]
        self.keys, self.values = self.keys[: len(order)], self.values[: len(order)]


def _with_room(states: Tensor, capacity: int, repeats: int = 1) -> Tensor:
    """A copy of ``states`` with every row repeated and ``capacity`` tokens of space."""
    rows, heads, length, size = states.shape
    buffer = states.new_empty(rows, repeats, heads, capacity, size)
    buffer[..., :length, :] = states.unsqueeze(1)
    return buffer.view(rows * repeats, heads, capacity, size)


def ragged_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for this model whose rows can be repeated and dropped.

    Raises:
        ValueError: If a layer keeps something other than keys and values, as state-space layers do.
    """
    cache = DynamicCache(config=config)
    supported = (DynamicLayer, DynamicSlidingWindowLayer)
    others = sorted({type(layer).__name__ for layer in cache.layers if type(layer) not in supported})
    if others:
        raise ValueError(
            f"TransformersGenerator decodes models that cache keys and values, but the model_type "
            f"{config.model_type!r} also needs {', '.join(others)}. Use VLLMColocate as model.generator."
        )
    cache.layers = [BufferedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


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
        else:
            layer.batch_select_indices(order)
