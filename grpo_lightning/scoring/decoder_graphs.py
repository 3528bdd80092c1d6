"""The decoder's passes as CUDA graphs: one launch forward and one backward, in place of thousands.

The host needs milliseconds for each layer's kernels, and a GPU less for the layers of a small model. A graph launches
kernels as they were recorded, on the same memory: passes are padded to few shapes (``fixed_shapes.py``), each is recorded
when it first comes, and gradients of weights are added in place. Embeddings, head and loss are outside.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.scoring.blocks import Packing
from grpo_lightning.scoring.fixed_shapes import Shape, filled, shape_of, with_room
from grpo_lightning.scoring.packing import PackedBatch
from grpo_lightning.scoring.recorded_pass import DecoderPass, RecordedPass, autocast_now
from grpo_lightning.scoring.weight_gradients import WeightGradients

logger = logging.getLogger(__name__)

MOST_GRAPHS = 32
"""Of a run at a time: each takes memory for its launches. The one that has been used longest ago makes room."""


class DecoderGraphs:
    """Records passes with gradient, and launches them.

    A pass whose gradient is still to come keeps its graph's memory: while there is one, others are launched one by one.

    Args:
        gradients: Of the model's linear layers.
    """

    def __init__(self, gradients: WeightGradients) -> None:
        self.gradients = gradients
        self._graphs: dict[Any, RecordedPass] = {}
        self._pool: Any = None
        self._stream: Any = None
        self._sums: dict[nn.Parameter, Tensor] = {}
        """Gradients of the decoder's weights, where graphs add to them."""
        self._recorded_for: Any = None
        self._open: weakref.ref[_Open] | None = None
        self._has_failed = self._has_told = False

    def hidden(self, decoder: Any, batch: PackedBatch) -> Tensor | None:
        """``(L, H)`` hidden states behind the last norm, L at least that of the batch; None where no graph serves this pass.

        Args:
            decoder: Of a transformers model, with packed attention.
            batch: On the CPU.
        """
        if self._has_failed or not torch.is_grad_enabled() or self._is_open:
            return None
        modules = list(decoder.modules())
        parameters = list(
            dict.fromkeys(each for module in modules for each in module._parameters.values() if each is not None)
        )
        device, weights = parameters[0].device, [weight for weight in parameters if weight.requires_grad]
        if device.type != "cuda" or not weights or self._is_watched(modules, weights):
            return None
        self._forget_other(decoder.training, parameters)
        embeddings = decoder.get_input_embeddings()(to_device(batch.input_ids[None], device))
        shape = shape_of(batch)
        key = shape, embeddings.dtype, embeddings.requires_grad, autocast_now()
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
        anchor = torch.empty(0, device=device, requires_grad=True)  # embeddings may have no gradient
        hidden: Tensor = _Replay.apply(embeddings, anchor, graph, self, taken)
        return hidden

    @property
    def _is_open(self) -> bool:
        taken = None if self._open is None else self._open()
        return taken is not None and not taken.is_done

    def _is_watched(self, modules: list[nn.Module], weights: list[nn.Parameter]) -> bool:
        """Whether somebody waits for what a launched graph does not tell; said once."""
        watched = any(map(_has_hooks, modules)) or any(map(_gradient_is_awaited, weights))
        if watched and not self._has_told:
            self._has_told = True
            logger.warning(
                "Training passes are launched kernel by kernel in spite of model.cuda_graphs=true: a callback or a library has "
                "hooks on the model's modules or weights, which graphs would not call."
            )
        return watched

    def _forget_other(self, training: bool, parameters: list[nn.Parameter]) -> None:
        """Drops graphs of weights that are elsewhere by now, or are frozen, and of another mode."""
        recorded_for = training, [(weight.data_ptr(), weight.requires_grad) for weight in parameters]
        if recorded_for != self._recorded_for:
            self._forget()
            self._recorded_for = recorded_for

    def _forget(self) -> None:
        """Gives back what graphs read and write."""
        self._graphs.clear()
        self._sums, self._pool = {}, None

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
    ) -> RecordedPass | None:
        """None for what cannot be recorded, which is said: this pass and all others run without."""
        record = partial(self._record, decoder, weights, embeddings, batch, shape)
        found: RecordedPass | str = ""
        for has_others in [True, False] if self._graphs else [False]:
            if not has_others:
                self._forget()
            found = _made_or_why(partial(record, tidy=not has_others), embeddings.device)
            if isinstance(found, RecordedPass):
                return found
        self._has_failed = True
        self._forget()
        logger.warning(
            "Training passes are launched kernel by kernel: model.cuda_graphs=true could not record one of %d tokens (%s).",
            shape.tokens,
            found,
        )
        return None

    def _record(
        self,
        decoder: nn.Module,
        weights: list[nn.Parameter],
        embeddings: Tensor,
        batch: PackedBatch,
        shape: Shape,
        tidy: bool,
    ) -> RecordedPass:
        device = embeddings.device
        inner = [weight for weight in weights if not _is_of_embeddings(weight, decoder)]
        if not self._sums:
            self._sums = {weight: torch.zeros_like(weight) for weight in inner}
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
        self.collect_sums()
        inputs = embeddings.detach()[:, :1].repeat(1, shape.tokens, 1).requires_grad_(embeddings.requires_grad)
        packing = with_room(Packing(batch.spans, device), shape)
        if packing.key_index is not None and packing.key_inverse is None:
            raise RuntimeError("without triton gathers have gradients also of keys that nobody reads")
        position_ids = to_device(batch.position_ids[None], device)
        passed = DecoderPass(decoder, inputs, position_ids, packing, self._sums, self.gradients)
        if tidy:
            gc.collect()  # of passes launched one by one, whose weights would get their gradients on another stream
            torch.cuda.empty_cache()
        return RecordedPass(passed, self._pool, self._stream)


class _Open:
    """A pass whose gradient is still to come."""

    is_done = False


class _Replay(torch.autograd.Function):
    """Hidden states of embeddings by a graph that has read them; weights get their gradients in place."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, anchor: Tensor, graph: RecordedPass, graphs: DecoderGraphs, taken: _Open
    ) -> Tensor:
        graph.launch_forward()
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
        ctx.graphs.collect_sums()
        of_embeddings = ctx.graph.launch_backward(of_hidden)
        return None if of_embeddings is None else of_embeddings[:, : ctx.length], None, None, None, None


def _made_or_why(record: Callable[[], RecordedPass], device: torch.device) -> RecordedPass | str:
    """What is recorded, or the error in a line; the error itself would keep alive what the next try has to be rid of."""
    generator = torch.cuda.default_generators[device.index]
    random_state = generator.clone_state()
    try:
        return record()
    except Exception as error:  # of whatever it is in a model
        generator.graphsafe_set_state(random_state)  # torch leaves it as if it went on recording
        return _first_line(error.__context__ or error)  # what ended the recording, and not that it did not end well


def _first_line(error: BaseException) -> str:
    line, _, _ = str(error).partition("\n")
    return f"{type(error).__name__}: {line}"


def _is_of_embeddings(weight: nn.Parameter, decoder: Any) -> bool:
    return weight is getattr(decoder.get_input_embeddings(), "weight", None)


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _gradient_is_awaited(weight: nn.Parameter) -> bool:
    return bool(weight._backward_hooks or weight._post_accumulate_grad_hooks) or type(weight) is not nn.Parameter
