"""Gradients of an output head of one matrix, added up a slice of tokens at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grpo_lightning.numerics.wide_products import add_product


class HeadGradients:
    """What ``hidden @ weight.T + bias`` passes back to the three, from the gradients of the logits of each slice.

    Args:
        hidden: ``(T, H)``.
        weight: ``(V, H)``, in the dtype of ``hidden``.
        bias: ``(V,)``.
        needed: Which of the three have a gradient, in this order.
        dtype: Of the sums over slices: in bfloat16 many of them would lose the small ones.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: Sequence[bool], dtype: torch.dtype
    ) -> None:
        self.hidden, self.weight = hidden, weight
        needs_hidden, needs_weight, needs_bias = needed
        self.of_hidden = torch.empty_like(hidden) if needs_hidden else None
        self.of_weight = torch.zeros_like(weight, dtype=dtype) if needs_weight else None
        self.of_bias = torch.zeros_like(bias, dtype=dtype) if needs_bias and bias is not None else None

    def add(self, part: slice, of_logits: Tensor) -> None:
        """Adds a slice of tokens; every token is in one.

        Args:
            part: Of the T tokens, n of them.
            of_logits: ``(n, V)``, the gradient of the head's output.
        """
        if self.of_bias is not None:
            self.of_bias += of_logits.sum(0, dtype=self.of_bias.dtype)
        if self.of_hidden is not None:
            torch.mm(of_logits, self.weight, out=self.of_hidden[part])
        if self.of_weight is not None:
            add_product(self.of_weight, of_logits.t(), self.hidden[part])

    def result(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of hidden states, weight and bias; the two last ones in ``dtype``, that of the parameters."""
        of_weight = None if self.of_weight is None else self.of_weight.to(dtype)
        return self.of_hidden, of_weight, None if self.of_bias is None else self.of_bias.to(dtype)
