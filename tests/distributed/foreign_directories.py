"""Sharded checkpoints that somebody has changed, and what a run that goes on from one says."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from grpo_lightning.distributed.checkpoint_check import CheckpointNotReadableError


def said_of_changed(
    intact: Path, changed: Sequence[Path], change: Callable[[], None], go_on: Callable[[Path], None]
) -> list[str]:
    """The error for each changed copy of a checkpoint; on all ranks together. Then the run goes on from the one that is intact.

    Args:
        intact: A checkpoint that all ranks have written.
        changed: Where its copies are made.
        change: Changes them, on the first rank.
        go_on: Trains from a checkpoint.
    """
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        for path in changed:
            shutil.copytree(intact, path)
        change()
    torch.distributed.barrier()
    said = []
    for path in changed:
        with pytest.raises(CheckpointNotReadableError) as error:
            go_on(path)
        said.append(str(error.value))
    go_on(intact)
    return said
