"""One pass of a decoder recorded as two CUDA graphs, which launch its kernels again on the same memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.scoring.blocks import Packing
from grpo_lightning.scoring.packing import PackedBatch
from grpo_lightning.scoring.weight_gradients import WeightGradients


@dataclass
class DecoderPass:
    """A decoder, and inputs that stay where they are."""

    decoder: nn.Module
    embeddings: Tensor
    """(1, L, H)."""
    position_ids: Tensor
    """(1, L) int64."""
    packing: Packing
    sums: dict[nn.Parameter, Tensor]
    """Of the gradients of weights."""
    gradients: WeightGradients

    def forward(self) -> Tensor:
        """``(L, H)`` hidden states."""
        states = self.decoder(
            inputs_embeds=self.embeddings,
            position_ids=self.position_ids,
            attention_mask=torch.zeros(1, 1, 1, 1, device=self.embeddings.device),
            use_cache=False,
            packing=self.packing,
        )
        hidden: Tensor = states.last_hidden_state[0]
        return hidden

    def backward(self, hidden: Tensor, of_hidden: Tensor) -> Tensor | None:
        """Adds to the sums; the gradient of the embeddings, where they have one.

        Autograd brings gradients here and not to the weights, whose own places in its graph belong to another stream.
        """
        has_gradient = self.embeddings.requires_grad
        wanted = [*([self.embeddings] if has_gradient else []), *self.sums]
        with self.gradients.in_place():
            found = list(torch.autograd.grad(hidden, wanted, of_hidden, allow_unused=True))
        of_embeddings = found.pop(0) if has_gradient else None
        pairs = [(total, each) for total, each in zip(self.sums.values(), found, strict=True) if each is not None]
        if pairs:
            torch._foreach_add_([total for total, _ in pairs], [each for _, each in pairs])
        return of_embeddings

    def once_unrecorded(self, stream: torch.cuda.Stream) -> None:
        """Compiles kernels and has libraries take what they need, which cannot be recorded; adds 0 to the sums."""
        device = self.embeddings.device
        with torch.random.fork_rng([device]):
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                hidden = self.forward()
                self.backward(hidden, torch.zeros_like(hidden))
            torch.cuda.current_stream(device).wait_stream(stream)


class RecordedPass:
    """Records a pass, whose inputs are then read and whose results are written where they were.

    Args:
        inputs: The pass.
        pool: Of the memory in between, which recorded passes share: only one of them is under way.
        stream: That is recorded on.
    """

    def __init__(self, inputs: DecoderPass, pool: Any, stream: torch.cuda.Stream) -> None:
        self.inputs = inputs
        torch.clear_autocast_cache()  # casts of another stream
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with _without_cached_casts():
            inputs.once_unrecorded(stream)
            with _recorded_by(self._forward, pool, stream):
                hidden = inputs.forward()
            self._of_hidden = torch.zeros_like(hidden)
            with _recorded_by(self._backward, pool, stream):
                self._of_embeddings = inputs.backward(hidden, self._of_hidden)
        self.hidden = hidden.detach()
        """(L, H), of the last pass that was launched."""

    def launch_forward(self) -> None:
        """Writes ``hidden``."""
        self._forward.replay()

    def launch_backward(self, of_hidden: Tensor) -> Tensor | None:
        """Adds the gradients of weights to the sums; that of the embeddings ``(1, L, H)``, where they have one."""
        self._of_hidden.copy_(of_hidden)
        self._backward.replay()
        return self._of_embeddings

    def read(self, embeddings: Tensor, batch: PackedBatch) -> None:
        """Copies a batch of this graph's shape, with ``(1, n, H)`` embeddings of its first tokens, to where it is read."""
        length, read = embeddings.shape[1], self.inputs.embeddings.detach()
        read[:, :length].copy_(embeddings)
        read[:, length:].copy_(embeddings[:, :1].expand_as(read[:, length:]))  # of some token: norms are finite
        device = embeddings.device
        self.inputs.position_ids.copy_(to_device(batch.position_ids[None], device))
        given = Packing(batch.spans, device)
        own = self.inputs.packing
        own.cu_seq_q.copy_(given.cu_seq_q)
        own.cu_seq_k.copy_(given.cu_seq_k)
        if own.key_index is not None and given.key_index is not None:
            own.key_index.copy_(given.key_index)
        if own.key_inverse is not None and given.key_inverse is not None:
            own.key_inverse.order[: len(given.key_inverse.order)].copy_(given.key_inverse.order)
            own.key_inverse.starts.copy_(given.key_inverse.starts)


@contextmanager
def _recorded_by(graph: torch.cuda.CUDAGraph, pool: Any, stream: torch.cuda.Stream) -> Iterator[None]:
    """What ``torch.cuda.graph`` does, but for emptying torch's caches of memory, which costs a second for each graph."""
    torch.cuda.synchronize(stream.device)
    with torch.cuda.stream(stream):
        graph.capture_begin(pool, capture_error_mode="thread_local")
        try:
            yield
        finally:
            graph.capture_end()


def autocast_now() -> tuple[bool, torch.dtype]:
    """Whether autocast is on, and for which dtype."""
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")


def _without_cached_casts() -> torch.autocast:
    """Autocast as it is around, without weights that it has cast outside of a graph, or that only a graph casts anew."""
    enabled, dtype = autocast_now()
    return torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False)
