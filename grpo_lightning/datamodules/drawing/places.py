"""Which rows a rank sees in which batch: pure functions of the seed, the epoch and the batch."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from grpo_lightning.errors import ExplainedError


class OtherDataError(ExplainedError, ValueError):
    """A place in the data means nothing in other data."""


def epoch_permutation(num_rows: int, seed: int, epoch: int, shuffle: bool = True) -> Tensor:
    """The order of the rows in an epoch, the same on every rank.

    Args:
        num_rows: Rows of the dataset.
        seed: Of the run.
        epoch: Counted from 0.
        shuffle: False gives 0, 1, 2, ...

    Returns:
        ``(num_rows,)`` int64, a permutation of the row numbers.
    """
    if not shuffle:
        return torch.arange(num_rows)
    # Hashed, not added: seed 1's first epoch would otherwise be seed 0's second.
    digest = hashlib.sha256(f"order {seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randperm(num_rows, generator=generator)


def share(total: int, index: int, count: int) -> range:
    """Part ``index`` of ``count`` of ``range(total)``: contiguous parts whose sizes differ by at most one.

    Example:
        >>> [list(share(7, part, 3)) for part in range(3)]
        [[0, 1], [2, 3], [4, 5, 6]]
    """
    return range(total * index // count, total * (index + 1) // count)


def training_rows(batch: int, batch_size: int, rank: int, world_size: int) -> range:
    """Places in the epoch's permutation of a rank's prompts in a step.

    The global batch, ``batch_size * world_size`` places, is contiguous and so is each rank's part of it. Hence the same
    global batch on any number of ranks holds the same rows in the same order.

    Example:
        >>> [list(training_rows(1, batch_size=2, rank=rank, world_size=2)) for rank in range(2)]
        [[4, 5], [6, 7]]
    """
    start = (batch * world_size + rank) * batch_size
    return range(start, start + batch_size)


def num_evaluation_batches(num_rows: int, batch_size: int, world_size: int) -> int:
    """How many batches every rank runs so that no rank has more than ``batch_size`` rows in any of them."""
    return -(-num_rows // (batch_size * world_size))


def evaluation_rows(batch: int, num_rows: int, batch_size: int, rank: int, world_size: int) -> range:
    """Rows of a rank's evaluation batch: over all batches and ranks each row once, none repeated as padding.

    Rows are spread evenly over batches and then over ranks, rather than leaving a short last batch. So all ranks run
    the same number of batches, and a rank's batch is empty only where it cannot be otherwise: with fewer rows than
    ranks, or ``batch_size`` 1 and a number of rows that the ranks do not divide.

    Example:
        >>> [[list(evaluation_rows(b, 5, batch_size=2, rank=r, world_size=2)) for b in range(2)] for r in range(2)]
        [[[0], [2]], [[1], [3, 4]]]
    """
    together = share(num_rows, batch, num_evaluation_batches(num_rows, batch_size, world_size))
    mine = share(len(together), rank, world_size)
    return together[mine.start : mine.stop]
