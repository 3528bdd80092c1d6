"""Metrics as sums: added up over micro-batches and ranks, divided once at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from grpo_lightning.distributed.gather import gather_objects

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class MetricSums:
    """Numbers that can be combined in any order. All tensors stay on the device until :meth:`result`.

    Example:
        >>> one = MetricSums(means={"kl": torch.tensor([6.0, 2.0])}, maxima={"gap": torch.tensor(0.5)})
        >>> two = MetricSums(means={"kl": torch.tensor([0.0, 4.0])}, maxima={"gap": torch.tensor(0.25)})
        >>> (one + two).result()
        {'gap': 0.5, 'kl': 1.0}
    """

    totals: Mapping[str, Tensor] = field(default_factory=dict)
    """Scalars that add up (tokens, the loss of the step)."""
    means: Mapping[str, Tensor] = field(default_factory=dict)
    """(2,) tensors: a sum, and how many entries it has."""
    minima: Mapping[str, Tensor] = field(default_factory=dict)
    """Scalars; inf where nothing was seen."""
    maxima: Mapping[str, Tensor] = field(default_factory=dict)
    """Scalars; -inf where nothing was seen."""
    samples: Mapping[str, Tensor] = field(default_factory=dict)
    """1-D tensors of single values, of which percentiles are told: ``<name>_p50``, ``_p90``, ``_p99``."""

    def __add__(self, other: MetricSums) -> MetricSums:
        """Both together; a name that only one of them has is taken over."""
        return MetricSums(
            totals=_merge(self.totals, other.totals, torch.add),
            means=_merge(self.means, other.means, torch.add),
            minima=_merge(self.minima, other.minima, torch.minimum),
            maxima=_merge(self.maxima, other.maxima, torch.maximum),
            samples=_merge(self.samples, other.samples, lambda left, right: torch.cat([left, right])),
        )

    def to_vector(self) -> Tensor:
        """1-D, CPU: every number, names in sorted order; one copy takes those on an accelerator to the host.

        Raises:
            RuntimeError: If there is no number at all.
        """
        parts = [values[name].reshape(-1) for values in self._kinds() for name in sorted(values)]
        dtype = max((part.dtype for part in parts), key=lambda dtype: dtype.itemsize, default=torch.float32)
        remote = [part.to(dtype) for part in parts if part.device.type != "cpu"]
        copied = iter(torch.cat(remote).cpu().split([part.numel() for part in remote]) if remote else ())
        return torch.cat([part.to(dtype) if part.device.type == "cpu" else next(copied) for part in parts])

    def from_vector(self, vector: Tensor) -> MetricSums:
        """The same names with the numbers of a :meth:`to_vector`, wherever it is."""
        kinds: list[dict[str, Tensor]] = []
        for values in self._kinds():
            names = sorted(values)
            size = sum(values[name].numel() for name in names)
            head, vector = vector[:size], vector[size:]
            pieces = head.split([values[name].numel() for name in names])
            kinds.append({name: piece.reshape(values[name].shape) for name, piece in zip(names, pieces, strict=True)})
        return MetricSums(*kinds)

    def over_ranks(self) -> MetricSums:
        """All ranks' numbers together, on the CPU, in one collective; ranks may hold different names."""
        if not any(self._kinds()):
            return sum(gather_objects(self), MetricSums())
        return sum(gather_objects(self.from_vector(self.to_vector())), MetricSums())

    def result(self) -> dict[str, float]:
        """Plain numbers by name: totals, means, minima, maxima, percentiles. A metric that saw nothing is left out."""
        if not any(self._kinds()):
            return {}
        totals, means, minima, maxima, samples = self.from_vector(self.to_vector())._kinds()  # one copy to the host
        numbers = {name: float(value) for name, value in totals.items()}
        numbers |= {name: float(pair[0] / pair[1]) for name, pair in means.items() if pair[1] > 0}
        numbers |= {name: float(value) for name, value in minima.items() if value < math.inf}
        numbers |= {name: float(value) for name, value in maxima.items() if value > -math.inf}
        for name, values in samples.items():
            numbers |= {f"{name}_p{percent}": percentile(values, percent) for percent in PERCENTILES if len(values)}
        return dict(sorted(numbers.items()))

    def unmeasured(self) -> list[str]:
        """The names that :meth:`result` leaves out.

        Example:
            >>> MetricSums(means={"judge": torch.tensor([0.0, 0.0]), "kl": torch.tensor([1.0, 2.0])}).unmeasured()
            ['judge']
        """
        possible = {*self.totals, *self.means, *self.minima, *self.maxima}
        possible |= {f"{name}_p{percent}" for name in self.samples for percent in PERCENTILES}
        return sorted(possible - self.result().keys())

    def _kinds(self) -> list[dict[str, Tensor]]:
        return [dict(self.totals), dict(self.means), dict(self.minima), dict(self.maxima), dict(self.samples)]


def _merge(
    left: Mapping[str, Tensor], right: Mapping[str, Tensor], combine: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    both = {name: combine(left[name], right[name]) for name in left.keys() & right.keys()}
    return {**left, **right, **both}


def percentile(values: Tensor, percent: int) -> float:
    """The smallest of the values that ``percent`` of 100 of them do not exceed, so that it is one of them.

    Example:
        >>> [percentile(torch.arange(1.0, 201.0), percent) for percent in PERCENTILES]
        [100.0, 180.0, 198.0]
    """
    return float(values.sort().values[-(-percent * len(values) // 100) - 1])


def mean_of(values: Tensor) -> Tensor:
    """``(2,)`` float64: sum of the entries that are not NaN, and their number."""
    seen = values[~values.isnan()].double()
    return torch.stack([seen.sum(), torch.tensor(float(seen.numel())).to(seen)])


def mean_over(values: Tensor, counted: Tensor) -> Tensor:
    """``(2,)``: sum of the values where ``counted`` is True, and their number."""
    kept = values.detach().masked_fill(~counted, 0.0)
    return torch.stack([kept.sum(), counted.sum().to(kept.dtype)])


def minimum_over(values: Tensor, counted: Tensor) -> Tensor:
    """Scalar: smallest value where ``counted`` is True; inf where none is."""
    return -maximum_over(-values, counted)


def maximum_over(values: Tensor, counted: Tensor) -> Tensor:
    """Scalar: largest value where ``counted`` is True; -inf where none is."""
    floor = torch.full((1,), -math.inf, dtype=values.dtype, device=values.device)
    return torch.cat([values.detach().masked_fill(~counted, -math.inf), floor]).amax()
