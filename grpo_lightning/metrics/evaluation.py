"""How good the policy is on held-out prompts: mean scores and pass@k, aggregated over batches and ranks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The chance that at least one of k completions drawn from these samples is correct.

    The unbiased estimator ``1 - C(n - c, k) / C(n, k)`` of Chen et al. (arXiv:2107.03374), Eq. 1.

    Raises:
        ValueError: If k is not in [1, num_samples].

    Example:
        >>> pass_at_k(num_samples=4, num_correct=1, k=2)
        0.5
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs at least {k} completions per prompt, got {num_samples}.")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def none_if_nan(value: float) -> float | None:
    """The value, with None for NaN: JSON and Parquet have a null, and NaN would be a number to them."""
    return None if math.isnan(value) else value


class NamedMeans(Metric):
    """Means of several named quantities over everything seen, on every rank; NaN entries do not count.

    Args:
        names: What is averaged; fixed, so that ranks agree on what they exchange.

    Example:
        >>> means = NamedMeans(["accuracy", "length"])
        >>> means.update({"accuracy": [1.0, 0.0], "length": [10.0]})
        >>> means.compute()
        {'accuracy': 0.5, 'length': 10.0}
    """

    full_state_update = False

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self.add_state("sums", torch.zeros(len(names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(names), dtype=torch.float64), dist_reduce_fx="sum")
        self.sums: Tensor
        self.counts: Tensor

    def update(self, values: dict[str, list[float]]) -> None:
        """Adds entries to the named quantities."""
        for name, entries in values.items():
            index = self.names.index(name)
            counted = [entry for entry in entries if not math.isnan(entry)]
            self.sums[index] += sum(counted)
            self.counts[index] += len(counted)

    def compute(self) -> dict[str, float]:
        """The mean of each quantity that had entries."""
        pairs = zip(self.names, self.sums.tolist(), self.counts.tolist(), strict=True)
        return {name: total / count for name, total, count in pairs if count}
