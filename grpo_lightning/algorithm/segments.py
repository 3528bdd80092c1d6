"""Which completion each token belongs to: sums and means over ragged completions without padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_lightning.numerics.deterministic_gather import rows_at, sums_at


@dataclass(frozen=True)
class Segments:
    """T tokens of M completions, end to end or interleaved; sums run over the tokens that the policy chose.

    Example:
        >>> segments = Segments.of(torch.tensor([0, 0, 1]), torch.tensor([True, True, False]), completions=2)
        >>> segments.mean(torch.tensor([1.0, 3.0, 9.0]))
        tensor([2., 0.])
    """

    rows: Tensor
    """(T,) int64 in [0, M): the completion of each token."""
    mask: Tensor
    """(T,) bool: True where the policy chose the token and the loss counts it."""
    lengths: Tensor
    """(M,): tokens with a True mask; 0 for a completion that is masked as a whole."""

    @classmethod
    def of(cls, rows: Tensor, mask: Tensor, completions: int) -> Segments:
        """Segments with the lengths counted from ``rows`` and ``mask``."""
        lengths = torch.zeros(completions, dtype=torch.int64, device=rows.device).index_add(0, rows, mask.long())
        return cls(rows, mask, lengths)

    def keep(self, values: Tensor) -> Tensor:
        """``(T,)`` values with exact zeros, of value and of gradient, where the mask is False.

        Tokens of tools and masked completions may hold anything, NaN included; zeroing the inputs (rather than
        multiplying a result by 0) keeps that out of the gradient.
        """
        return values.masked_fill(~self.mask, 0.0)

    def sum(self, values: Tensor) -> Tensor:
        """``(M,)``: sum of ``(T,)`` values over each completion's masked tokens."""
        return sums_at(self.keep(values), self.rows, self.lengths.numel())

    def mean(self, values: Tensor) -> Tensor:
        """``(M,)``: mean of ``(T,)`` values over each completion's masked tokens; 0 where there is none."""
        return self.sum(values) / self.lengths.clamp(min=1)

    def spread(self, values: Tensor) -> Tensor:
        """``(T,)``: each token receives its completion's entry of the ``(M,)`` values."""
        return rows_at(values, self.rows)
