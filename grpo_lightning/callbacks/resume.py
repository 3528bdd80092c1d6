"""Where a run goes on from: what ``--ckpt_path last`` and ``best`` mean in a new process."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint, Timer

from grpo_lightning.distributed.checkpoint_check import (
    CheckpointNotReadableError,
    check_own,
    check_stage,
    intact_beside,
    read_checkpoint,
)
from grpo_lightning.distributed.checkpoint_io import newest
from grpo_lightning.distributed.moved_folder import REQUEUED, finish_move, finish_moves


def check_named(ckpt_path: str | None, root: Path, stage: str) -> None:
    """Refuses a ``--ckpt_path`` that leads to nothing, or to a file of another program or stage; nothing large is read.

    Args:
        ckpt_path: A path, or a word such as ``last``, which is looked for elsewhere.
        root: Of the run, whose own checkpoints are named.
        stage: Of the run.

    Raises:
        CheckpointNotReadableError: With a way out.
    """
    finish_moves(root, REQUEUED)
    if ckpt_path == "hpc" and not any(root.glob(REQUEUED)):
        raise CheckpointNotReadableError(
            f"--ckpt_path hpc: {root} has no hpc_ckpt_N.ckpt, which a requeue by SLURM leaves. Use --ckpt_path last."
        )
    if ckpt_path is None or ckpt_path in ("last", "best", "hpc") or "://" in ckpt_path:
        return
    path = Path(ckpt_path)
    finish_move(path)
    if not path.exists():
        there = newest(root.glob("checkpoints/*.ckpt"))
        meant = f"The newest of this run is {there}." if there else f"There is none in {root / 'checkpoints'} either."
        raise CheckpointNotReadableError(f"--ckpt_path {path}: there is no such file. {meant}")
    if path.is_dir():
        if not (path / ".metadata").exists():
            raise CheckpointNotReadableError(
                f"--ckpt_path {path} is a folder that is no checkpoint. Name a .ckpt file, or last."
            )
        return
    if not zipfile.is_zipfile(path):
        raise CheckpointNotReadableError(
            f"--ckpt_path {path}: the file is cut off, or not a checkpoint. {intact_beside(path)}"
        )
    try:
        saved = torch.load(path, map_location="meta", mmap=True, weights_only=True)
    except Exception:  # whatever is wrong with its contents, the load itself explains
        return
    check_own(path, saved)
    check_stage(saved, stage)


def check_starts_anew(trainer: Trainer) -> None:
    """Refuses a start without ``--ckpt_path`` that Lightning would make a resume of: it does where OnExceptionCheckpoint is given.

    From the newest of what that callback has saved and of the ``last.ckpt`` of each ModelCheckpoint, and from no other.

    Args:
        trainer: With its callbacks.

    Raises:
        ValueError: Naming the checkpoint, and both ways out.
    """
    savers = [each for each in trainer.callbacks if isinstance(each, OnExceptionCheckpoint)]  # type: ignore[attr-defined]
    if not savers:
        return
    keepers = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    paths = [saver.ckpt_path for saver in savers] + [
        path for each in keepers for path in each._find_last_checkpoints(trainer)
    ]
    saved = [Path(path) for path in paths if Path(path).exists()]
    there = newest(saved)
    if there is not None:
        raise ValueError(
            f"trainer.callbacks: OnExceptionCheckpoint has Lightning go on from {there}, and --ckpt_path was not given. Give "
            "--ckpt_path last to go on. To start anew, leave the callback out: a run that ends with an error saves "
            "checkpoints/last.ckpt without it."
        )


def nothing_left(trainer: Trainer) -> str:
    """Why a run that went on from a checkpoint had no step to train, and what to raise."""
    timer = next((each for each in trainer.callbacks if isinstance(each, Timer)), None)  # type: ignore[attr-defined]
    remaining = None if timer is None else timer.time_remaining()
    if timer is not None and remaining is not None and remaining <= 0:
        limit = f"trainer.max_time, which counts earlier launches too ({timer.time_elapsed():.0f} s so far)"
    else:
        ends = {"trainer.max_steps": trainer.max_steps, "trainer.max_epochs": trainer.max_epochs}
        limit = " or ".join(f"{name}={value}" for name, value in ends.items() if value is not None and value > 0)
    return f"No step was left to train: step {trainer.global_step} is where {limit} ends this run. Raise it to go on."


def best_checkpoint(last: Path | None, monitor: str | None) -> Path:
    """The checkpoint that scored best in the run whose newest checkpoint is ``last``.

    Args:
        last: None where there is none.
        monitor: ``checkpoint.monitor``.

    Raises:
        ValueError: Saying why there is none.
    """
    if monitor is None:
        raise ValueError(
            "--ckpt_path best: checkpoint.monitor is not set, so no checkpoint is better than another. Use --ckpt_path last, "
            "or train with checkpoint.monitor=val/accuracy or another metric."
        )
    if last is None:
        raise ValueError("--ckpt_path best: the run has no last.ckpt, which says which checkpoint was the best.")
    states = read_checkpoint(last, weights_only=True).get("callbacks", {})
    scored = [
        state for name, state in states.items() if name.startswith("ModelCheckpoint") and state.get("best_model_path")
    ]
    found = [Path(state["best_model_path"]) for state in scored if state.get("monitor") == monitor]
    if not found:
        raise ValueError(f"--ckpt_path best: no checkpoint of the run was scored by checkpoint.monitor={monitor}.")
    return existing([found[0], last.parent / found[0].name])


def existing(places: Iterable[Path]) -> Path:
    """The first that is there: a run's folder may have been moved.

    Raises:
        ValueError: If none is.
    """
    places = list(places)
    for place in places:
        if place.exists():
            return place
    raise ValueError(f"--ckpt_path best: {places[0]} was the best and is gone. Use --ckpt_path last.")
