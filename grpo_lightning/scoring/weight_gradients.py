"""Linear layers under autocast whose weight gradients leave their product in float32, and are added up by the next one.

Autocast's own way computes the gradient of a float32 weight in bfloat16, casts it and adds it: the sum over micro-batches
is of rounded numbers, and each micro-batch reads and writes every gradient twice more than its product does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from grpo_lightning.numerics.output_head import base_model
from grpo_lightning.numerics.wide_products import add_product, wide_product


class WeightGradients:
    """Computes the weight gradients of a model's linear layers, and says who adds them up.

    Autograd gets each of them, as strategies that exchange gradients need; inside ``in_place`` the products are added to
    those that are there already, and autograd gets none.
    """

    def __init__(self) -> None:
        self.are_added_in_place = False  # of no thread: torch runs backward passes in others

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Around a backward pass that nothing but the optimizer waits for."""
        self.are_added_in_place = True
        try:
            yield
        finally:
            self.are_added_in_place = False

    def compute(self, model: nn.Module) -> None:
        """Gives the linear layers of a model the passes of this file; an output head over tokens has others.

        Only float32 weights that are trained under autocast are concerned: those that are frozen, sharded, quantised or
        held in half precision compute as before.
        """
        head = base_model(model).get_output_embeddings()
        for module in model.modules():
            if type(module) is nn.Linear and module is not head:
                module.__dict__["forward"] = MethodType(self._forward, module)

    def _forward(self, layer: nn.Linear, inputs: Tensor) -> Tensor:
        weight, device = layer.weight, inputs.device.type
        is_cast = torch.is_autocast_enabled(device) and inputs.dtype != torch.float64  # which autocast leaves alone
        is_trained = torch.is_grad_enabled() and weight.requires_grad and type(weight) is nn.Parameter
        if not (is_cast and is_trained and weight.dtype == torch.float32):
            return F.linear(inputs, weight, layer.bias)
        rows = inputs.to(torch.get_autocast_dtype(device)).flatten(0, -2)
        outputs: Tensor = _Linear.apply(rows, weight, layer.bias, self)
        return outputs.unflatten(0, inputs.shape[:-1])


class _Linear(torch.autograd.Function):
    """``rows @ weight.T + bias`` for ``(n, in)`` rows in half precision, ``(out, in)`` weight and ``(out,)`` bias in float32."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, gradients: WeightGradients) -> Tensor:
        half = weight.to(rows.dtype)
        ctx.save_for_backward(rows, half)
        ctx.weight, ctx.gradients = weight, gradients
        return F.linear(rows, half, None if bias is None else bias.to(rows.dtype))

    @staticmethod
    def backward(ctx: Any, of_outputs: Tensor) -> tuple[Tensor | None, ...]:
        rows, half = ctx.saved_tensors
        needs_rows, _, needs_bias, _ = ctx.needs_input_grad
        of_rows = of_outputs @ half if needs_rows else None
        of_bias = of_outputs.sum(0, dtype=ctx.weight.dtype) if needs_bias else None
        if ctx.gradients.are_added_in_place and _is_there_unwatched(ctx.weight):
            add_product(ctx.weight.grad, of_outputs.t(), rows)
            return of_rows, None, of_bias, None
        return of_rows, wide_product(of_outputs.t(), rows, ctx.weight.dtype), of_bias, None


def _is_there_unwatched(weight: nn.Parameter) -> bool:
    """Whether a weight has a gradient, and no hook that autograd would call with what is added to it."""
    return weight.grad is not None and not weight._backward_hooks and not weight._post_accumulate_grad_hooks
