"""Means and standard deviations of groups: sample statistics (divisor n - 1), NaN for a reward that is None.

All functions see the completions of the whole step, of every rank. A group is told by its id, never by its place.
"""

from __future__ import annotations

import torch
from torch import Tensor

STD_EPSILON = 1e-4
"""Added to a standard deviation before dividing by it, as in TRL."""


def dense(groups: Tensor) -> Tensor:
    """``(N,)`` int64: the groups renumbered from 0, so that they can index."""
    return torch.unique(groups, return_inverse=True)[1]


def group_sum(values: Tensor, groups: Tensor) -> Tensor:
    """``(N,)``: the sum over each completion's group of the values that are not NaN."""
    index = dense(groups)
    return torch.zeros_like(values).index_add(0, index, values.nan_to_num(nan=0.0))[index]


def group_count(values: Tensor, groups: Tensor) -> Tensor:
    """``(N,)``: how many values of each completion's group are not NaN."""
    return group_sum((~values.isnan()).to(values.dtype), groups)


def group_mean(values: Tensor, groups: Tensor) -> Tensor:
    """``(N,)``: the mean of each completion's group over the values that are not NaN; NaN where there is none.

    Args:
        values: ``(N,)`` floating point.
        groups: ``(N,)`` integers, any ids.
    """
    index, present = dense(groups), ~values.isnan()
    sums = torch.zeros_like(values).index_add(0, index, values.nan_to_num(nan=0.0))
    counts = torch.zeros_like(values).index_add(0, index, present.to(values.dtype))
    return (sums / counts)[index]


def group_std(values: Tensor, groups: Tensor) -> Tensor:
    """``(N,)``: the sample standard deviation of each completion's group; 0 with fewer than two values.

    Exactly 0 where all values of the group are equal, though their mean may be off by a rounding.
    """
    index, present = dense(groups), ~values.isnan()
    deviations = (values - group_mean(values, groups)).nan_to_num(nan=0.0)
    squares = torch.zeros_like(values).index_add(0, index, deviations.square())
    counts = torch.zeros_like(values).index_add(0, index, present.to(values.dtype))
    std = (squares / (counts - 1).clamp(min=1)).sqrt()[index]
    return std.masked_fill(is_unanimous(values, groups), 0.0)


def is_unanimous(values: Tensor, groups: Tensor) -> Tensor:
    """``(N,)`` bool: True where the group's values that are not NaN are all equal, or fewer than two."""
    index = dense(groups)
    lowest = torch.full_like(values, torch.inf).scatter_reduce(0, index, values.nan_to_num(nan=torch.inf), "amin")
    highest = torch.full_like(values, -torch.inf).scatter_reduce(0, index, values.nan_to_num(nan=-torch.inf), "amax")
    return (lowest >= highest)[index]


def successes(values: Tensor) -> Tensor:
    """``(N,)`` float64: 1 where the reward that says what is correct is 1 or more, 0 where it is less, NaN where it is none.

    Example:
        >>> successes(torch.tensor([1.0, 0.5, float("nan")]))
        tensor([1., 0., nan], dtype=torch.float64)
    """
    return (values >= 1).double().masked_fill(values.isnan(), torch.nan)


def batch_std(values: Tensor) -> Tensor:
    """Scalar: the sample standard deviation of the values that are not NaN; 0 with fewer than two."""
    present = values[~values.isnan()]
    return present.std() if present.numel() > 1 else values.new_zeros(())


def centre_on_group(values: Tensor, groups: Tensor) -> Tensor:
    """``(N,)``: values minus their group's mean; exactly 0 in a unanimous group, NaN stays NaN."""
    centred = values - group_mean(values, groups)
    return centred.masked_fill(is_unanimous(values, groups) & ~values.isnan(), 0.0)
