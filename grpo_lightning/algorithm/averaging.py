"""How per-token losses become one number: the weight of a token in each completion, ``(M,)`` for ``(M,)`` lengths.

A weight depends on its own completion's length and on totals of the whole optimizer step over all ranks, never on
the micro-batch. The sum of ``weight * loss`` over any split into micro-batches is therefore the same step loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepTotals:
    """What one optimizer step trains on, over all its micro-batches and all ranks."""

    completions: int
    """N: all completions of the step, also those masked as a whole (TRL's mean divides by them too)."""
    tokens: int
    """Tokens with a True mask; a completion masked as a whole adds none."""
    high_entropy_tokens: int | Tensor | None = None
    """Tokens that pass the entropy threshold; needed for an entropy bonus with top_entropy_quantile < 1."""

    def __post_init__(self) -> None:
        if self.completions < 1 or self.tokens < 0:
            raise ValueError(f"an optimizer step has at least one completion and no negative token count, got {self}")


def mean_of_completion_means(lengths: Tensor, totals: StepTotals) -> Tensor:
    """``1 / (N * L)``: mean over completions of the mean over tokens (DeepSeekMath, arXiv:2402.03300, Eq. 3)."""
    return 1.0 / (totals.completions * lengths.clamp(min=1))


def mean_of_tokens(lengths: Tensor, totals: StepTotals) -> Tensor:
    """``1 / tokens``: mean over all tokens of the step (DAPO, arXiv:2503.14476, Eq. 8)."""
    return torch.full_like(lengths, 1.0 / max(totals.tokens, 1))


def constant_divisor(lengths: Tensor, totals: StepTotals, max_completion_length: int) -> Tensor:
    """``1 / (N * C)``: a constant for every token, so that length has no influence (Dr. GRPO, arXiv:2503.20783)."""
    return torch.full_like(lengths, 1.0 / (totals.completions * max_completion_length))


def mean_of_completion_sums(lengths: Tensor, totals: StepTotals) -> Tensor:
    """``1 / N``: mean over completions of the mean over tokens times the length (LUSPO, arXiv:2602.05261)."""
    return torch.full_like(lengths, 1.0 / totals.completions)
