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
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from grpo_lightning.numerics.dtypes import autocast_dtype
from grpo_lightning.numerics.output_head import base_model
from grpo_lightning.numerics.wide_products import add_product, wide_product

MANY_ROWS = 1024
"""Of a pass without gradient: with fewer, as where tokens are sampled one by one, casting a weight is what takes the time."""


class WeightGradients:
    """Computes the weight gradients of a model's linear layers, and says who adds them up.

    Autograd gets each of them, as strategies that exchange gradients need; inside ``in_place`` the products are added to
    those that are there already, and autograd gets none.
    """

    def __init__(self) -> None:
        self.are_added_in_place = False
        """Of no thread: torch runs backward passes in others."""

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Around a backward pass that nothing but the optimizer waits for."""
        self.are_added_in_place = True
        try:
            yield
        finally:
            self.are_added_in_place = False

    def install(self, model: nn.Module) -> None:
        """Gives the linear layers of a model the passes of this file; an output head over tokens has others.

        Only float32 weights that are trained under autocast are concerned: those that are frozen, sharded, quantised or
        held in half precision compute as before.
        """
        head = base_model(model).get_output_embeddings()
        for module in model.modules():
            if type(module) is nn.Linear and module is not head:
                module.__dict__["weight_gradients"] = self
                module.__dict__["forward"] = MethodType(forward, module)


def forward(self: Any, inputs: Tensor) -> Tensor:
    """Of a linear layer, by which name pickle finds the one of its class."""
    weight, dtype = self.weight, autocast_dtype(inputs)
    is_trained = weight.requires_grad and type(weight) is nn.Parameter and weight.dtype == torch.float32
    if dtype is None or not is_trained:
        return F.linear(inputs, weight, self.bias)
    rows = inputs.to(dtype).reshape(-1, inputs.shape[-1])
    if torch.is_grad_enabled():
        outputs: Tensor = _Linear.apply(rows, weight, self.bias, self.weight_gradients)
    elif len(rows) < MANY_ROWS:
        outputs = F.linear(rows, weight, self.bias)
    else:  # cast here, since autocast would keep what it casts beside what passes with gradient cast
        outputs = F.linear(rows, weight.to(rows.dtype), None if self.bias is None else self.bias.to(rows.dtype))
    return outputs.view(*inputs.shape[:-1], outputs.shape[-1])


class _Linear(torch.autograd.Function):
    """``rows @ weight.T + bias`` for ``(n, in)`` rows in half precision, ``(out, in)`` weight and ``(out,)`` bias in float32."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, gradients: WeightGradients) -> Tensor:
        half = weight.to(rows.dtype)
        ctx.save_for_backward(rows, half)
        ctx.weight, ctx.gradients = weight, gradients
        return F.linear(rows, half, None if bias is None else bias.to(rows.dtype))

    @staticmethod
    @once_differentiable
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
