"""What advantages are a function of: the completions of a step, of every rank, with their rewards."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ScoredStep:
    """N completions of T tokens in all, float64, on the CPU. NaN stands for a reward that is None."""

    rewards: Tensor
    """(N,): weighted totals; NaN for a completion without any."""
    groups: Tensor
    """(N,) int64: completions with the same id answer the same prompt and are compared."""
    lengths: Tensor
    """(N,) int64: tokens that the policy chose."""
    sizes: Tensor
    """(N,) int64: all tokens of a completion, those of tools too: T is their sum."""
    rewards_per_func: Tensor
    """(N, R): each reward by itself."""
    weights: Tensor
    """(R,)."""
    token_rewards: Tensor | None = None
    """(T,): weighted totals at the tokens that rewards speak of, NaN elsewhere; None where no reward tells tokens apart."""
