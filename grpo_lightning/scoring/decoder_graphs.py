"""The decoder's passes as CUDA graphs: one launch forward and one backward, in place of thousands.

The host needs milliseconds for each layer's kernels, and a GPU less for the layers of a small model. A graph launches
kernels as they were recorded, on the same memory: passes are padded to few shapes (``fixed_shapes.py``), each is recorded
when it first comes, and gradients of weights are added in place. Embeddings, head and loss are outside.
"""

from __future__ import annotations

import logging
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from grpo_lightning.numerics.deterministic_gather import Inverse
from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.scoring.blocks import Packing
from grpo_lightning.scoring.fixed_shapes import Shape, filled, shape_of
from grpo_lightning.scoring.packing import PackedBatch
from grpo_lightning.scoring.weight_gradients import WeightGradients

logger = logging.getLogger(__name__)

MOST_GRAPHS = 32
"""Of a run at a time: each takes memory for its launches. The one that has been used longest ago makes room."""


@dataclass
class _Graph:
    """A recorded pass, and the memory that it reads and writes."""

    embeddings: Tensor
    """(1, L, H)."""
    position_ids: Tensor
    """(1, L) int64."""
    packing: Packing
    hidden: Tensor
    """(L, H), written by ``forward``."""
    of_hidden: Tensor
    """(L, H), the gradient of ``hidden`` that ``backward`` reads."""
    of_embeddings: Tensor | None
    """(1, L, H); None where the embeddings are not trained."""
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph

    def read(self, embeddings: Tensor, batch: PackedBatch) -> None:
        """Copies a batch of this graph's shape, with ``(1, n, H)`` embeddings of its first tokens, to where it is read."""
        self.embeddings.detach()[:, : embeddings.shape[1]].copy_(embeddings)
        device = embeddings.device
        self.position_ids.copy_(to_device(batch.position_ids[None], device))
        given = Packing(batch.spans, device)
        own = self.packing
        own.cu_seq_q.copy_(given.cu_seq_q)
        own.cu_seq_k.copy_(given.cu_seq_k)
        if own.key_index is not None and given.key_index is not None:
            own.key_index.copy_(given.key_index)
        if own.key_inverse is not None and given.key_inverse is not None:
            own.key_inverse.order[: len(given.key_inverse.order)].copy_(given.key_inverse.order)
            own.key_inverse.starts.copy_(given.key_inverse.starts)


class DecoderGraphs:
    """Records passes with gradient, and launches them.

    A pass whose gradient is still to come keeps its graph's memory: while there is one, others are launched one by one.

    Args:
        gradients: Of the model's linear layers.
    """

    def __init__(self, gradients: WeightGradients) -> None:
        self.gradients = gradients
        self._graphs: dict[Any, _Graph] = {}
        self._pool: Any = None
        self._stream: Any = None
        self._sums: dict[nn.Parameter, Tensor] = {}
        """Gradients of the decoder's weights, where graphs add to them."""
        self._recorded_for: Any = None
        self._open: weakref.ref[_Open] | None = None
        self._has_failed = False

    def hidden(self, decoder: nn.Module, embeddings: Tensor, batch: PackedBatch) -> Tensor | None:
        """``(L, H)`` hidden states behind the last norm, L at least that of the batch; None where no graph serves this pass.

        Args:
            decoder: Of a transformers model, with packed attention.
            embeddings: ``(1, n, H)`` of the batch's tokens.
            batch: On the CPU.
        """
        if self._has_failed or not embeddings.is_cuda or not torch.is_grad_enabled() or self._is_open:
            return None
        weights = [weight for weight in decoder.parameters() if weight.requires_grad]
        if not weights or _is_watched(weights):
            return None
        self._forget_other(decoder, weights)
        shape = shape_of(batch)
        key = shape, embeddings.dtype, embeddings.requires_grad, _autocast()
        batch = filled(batch, shape)
        graph = self._graphs.pop(key, None) or self._try_record(decoder, weights, embeddings, batch, shape)
        if graph is None:
            return None
        self._graphs[key] = graph  # behind those used before
        if len(self._graphs) > MOST_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        graph.read(embeddings.detach(), batch)
        taken = _Open()
        self._open = weakref.ref(taken)
        anchor = torch.empty(0, device=embeddings.device, requires_grad=True)  # embeddings may have no gradient
        hidden: Tensor = _Replay.apply(embeddings, anchor, graph, self, taken)
        return hidden

    @property
    def _is_open(self) -> bool:
        taken = None if self._open is None else self._open()
        return taken is not None and not taken.is_done

    def _forget_other(self, decoder: nn.Module, weights: list[nn.Parameter]) -> None:
        """Drops graphs of weights that are elsewhere by now, and of another mode."""
        recorded_for = decoder.training, tuple(weight.data_ptr() for weight in weights)
        if recorded_for != self._recorded_for:
            self._graphs.clear()
            self._sums, self._pool, self._recorded_for = {}, None, recorded_for

    def collect_sums(self) -> None:
        """Sees to it that the weights' gradients are where graphs add to them: 0 where there is none yet."""
        fresh = []
        for weight, total in self._sums.items():
            if weight.grad is None:
                fresh.append(total)
            elif weight.grad is not total:
                total.copy_(weight.grad)
            weight.grad = total
        if fresh:
            torch._foreach_zero_(fresh)

    def _try_record(
        self, decoder: nn.Module, weights: list[nn.Parameter], embeddings: Tensor, batch: PackedBatch, shape: Shape
    ) -> _Graph | None:
        generator = torch.cuda.default_generators[embeddings.device.index]
        random_state = generator.clone_state()
        try:
            return self._record(decoder, weights, embeddings, batch, shape)
        except Exception as error:  # of whatever cannot be recorded in a model; the passes themselves run without
            generator.graphsafe_set_state(random_state)  # torch leaves it as if it went on recording
            self._has_failed = True
            self._graphs.clear()
            self._pool = None
            first = error.__context__ or error  # what ended the recording, and not that it did not end well
            logger.warning(
                "Training passes are launched kernel by kernel: model.cuda_graphs=true could not record one of %d tokens "
                "(%s: %s).",
                shape.tokens,
                type(first).__name__,
                str(first).partition("\n")[0],
            )
            return None

    def _record(
        self, decoder: nn.Module, weights: list[nn.Parameter], embeddings: Tensor, batch: PackedBatch, shape: Shape
    ) -> _Graph:
        device = embeddings.device
        inputs = embeddings.new_zeros(1, shape.tokens, embeddings.shape[2]).requires_grad_(embeddings.requires_grad)
        position_ids = to_device(batch.position_ids[None], device)
        packing = _fixed(Packing(batch.spans, device), shape)
        mask = torch.zeros(1, 1, 1, 1, device=device)
        inner = [weight for weight in weights if not _is_of_embeddings(weight, decoder)]
        wanted = [inputs, *inner] if inputs.requires_grad else inner

        def decode() -> Tensor:
            states = decoder(
                inputs_embeds=inputs, position_ids=position_ids, attention_mask=mask, use_cache=False, packing=packing
            )
            hidden: Tensor = states.last_hidden_state[0]
            return hidden

        def differentiate(hidden: Tensor, of_hidden: Tensor) -> Tensor | None:
            with self.gradients.in_place():
                found = list(torch.autograd.grad(hidden, wanted, of_hidden, allow_unused=True))
            of_inputs = found.pop(0) if inputs.requires_grad else None
            pairs = [(self._sums[w], g) for w, g in zip(inner, found, strict=True) if g is not None]
            if pairs:
                torch._foreach_add_([total for total, _ in pairs], [each for _, each in pairs])
            return of_inputs

        if not self._sums:
            self._sums = {weight: torch.zeros_like(weight) for weight in inner}
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
        self.collect_sums()
        torch.clear_autocast_cache()  # whose casts would have their gradients on another stream
        recorder: dict[str, Any] = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
        with _without_cached_casts():
            with torch.random.fork_rng(
                [device]
            ):  # once at first: kernels are compiled and loaded, which is not recorded
                self._stream.wait_stream(torch.cuda.current_stream(device))
                with torch.cuda.stream(self._stream):
                    hidden = decode()
                    differentiate(hidden, torch.zeros_like(hidden))  # adds 0
                    del hidden
                torch.cuda.current_stream(device).wait_stream(self._stream)
            forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(forward, **recorder):
                hidden = decode()
            of_hidden = torch.zeros_like(hidden)
            with torch.cuda.graph(backward, **recorder):
                of_inputs = differentiate(hidden, of_hidden)
        return _Graph(inputs, position_ids, packing, hidden.detach(), of_hidden, of_inputs, forward, backward)


class _Open:
    """A pass whose gradient is still to come."""

    is_done = False


class _Replay(torch.autograd.Function):
    """Hidden states of embeddings by a graph that has read them; weights get their gradients in place."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, anchor: Tensor, graph: _Graph, graphs: DecoderGraphs, taken: _Open
    ) -> Tensor:
        graph.forward.replay()
        ctx.graph, ctx.graphs, ctx.taken, ctx.length = graph, graphs, taken, embeddings.shape[1]
        return graph.hidden.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_hidden: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.taken.is_done:
            raise RuntimeError(
                "A pass by CUDA graphs has one backward pass, and this is a second one (retain_graph=True). Leave "
                "model.cuda_graphs=true out."
            )
        ctx.taken.is_done = True
        ctx.graph.of_hidden.copy_(of_hidden)
        ctx.graphs.collect_sums()
        ctx.graph.backward.replay()
        of_embeddings = ctx.graph.of_embeddings
        return None if of_embeddings is None else of_embeddings[:, : ctx.length], None, None, None, None


def _fixed(packing: Packing, shape: Shape) -> Packing:
    """The packing with room for any of its shape."""
    packing.max_q, packing.max_k = shape.longest_queries, shape.longest_keys
    inverse = packing.key_inverse
    if inverse is not None and shape.keys is not None:
        room = inverse.order.new_zeros(shape.keys)
        room[: len(inverse.order)] = inverse.order
        packing.key_inverse = Inverse(room, inverse.starts)
    return packing


def _is_of_embeddings(weight: nn.Parameter, decoder: Any) -> bool:
    return weight is getattr(decoder.get_input_embeddings(), "weight", None)


def _is_watched(weights: list[nn.Parameter]) -> bool:
    """Whether somebody waits for a weight's gradient that autograd does not bring here."""
    return any(
        weight._backward_hooks or weight._post_accumulate_grad_hooks or type(weight) is not nn.Parameter
        for weight in weights
    )


def _autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")


def _without_cached_casts() -> torch.autocast:
    """Autocast as it is around, without weights that it has cast outside of a graph, or that only a graph casts anew."""
    enabled, dtype = _autocast()
    return torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False)
