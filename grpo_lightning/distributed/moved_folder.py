"""A directory that takes another's place in two moves, and what a kill between them leaves is put right."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from time import sleep

from grpo_lightning.distributed.folder_checksums import folder_fault, has_checksums

PART, OLD = ".part", ".old"
"""What the names of directories end with that are being written, and that are about to be removed."""
REQUEUED = "hpc_ckpt_*.ckpt"
"""What Lightning saves in ``trainer.default_root_dir`` when SLURM asks for it, before it queues the job again."""
NUMBERED, UNNUMBERED = "hpc_ckpt_", "hpc-ckpt-"
"""Of the former Lightning reads the number, also of what is half written; of the latter, in the names of parts, it does not."""


def part_of(path: Path) -> Path:
    """Where a file or directory is written that will be ``path``."""
    return path.with_name(path.name.replace(NUMBERED, UNNUMBERED) + PART)


def put_in_place(path: Path) -> None:
    """Moves what has been written beside ``path`` there; nothing of an earlier one is mixed in."""
    part, old = part_of(path), path.with_name(path.name + OLD)
    if path.is_dir() and not part.exists():  # an evaluation of the same run took it for what a kill has left
        return
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    try:
        os.replace(part, path)
    except FileNotFoundError:  # the same, a moment later
        if not path.is_dir():
            raise
    shutil.rmtree(old, ignore_errors=True)


def finish_move(path: Path) -> None:
    """Where a kill came between the two moves: the new directory if it is whole, else the old one. Any rank may do it."""
    part, old = part_of(path), path.with_name(path.name + OLD)
    if path.exists() or path.is_symlink():
        return
    found = next((each for each in (part, old) if _is_whole(each, without_checksums=each == old)), None)
    if found is None:
        return
    with suppress(OSError):  # another rank was first
        os.replace(found, path)
    if path.is_dir():
        shutil.rmtree(old, ignore_errors=True)  # else it would come back once ``path`` is removed


def _is_whole(folder: Path, without_checksums: bool) -> bool:
    """Whether everything is there that its checksums name; of one that has none, ``without_checksums``."""
    try:
        if not folder.is_dir():
            return False
        return folder_fault(folder) is None if has_checksums(folder) else without_checksums
    except OSError:  # it cannot be read
        return False


def finish_moves(folder: Path, names: str = "*.ckpt") -> None:
    """The same of all checkpoints of a folder, or of those that match a pattern."""
    for pattern, end in ((names.replace(NUMBERED, UNNUMBERED), PART), (names, OLD)):
        for found in sorted(folder.glob(f"{pattern}{end}")):
            finish_move(found.with_name(found.name.removesuffix(end).replace(UNNUMBERED, NUMBERED)))


def drop_half_written_requeues(root: Path) -> None:
    """Removes what a kill has left of checkpoints for SLURM that were not written to their end.

    Lightning reads a number off the names that earlier versions gave them, and would look for a checkpoint that never came to be.
    For the rank that holds the folder's lock: without it, a run that is going on may be writing them.
    """
    finish_moves(root, REQUEUED)
    for part in half_written_requeues(root):
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)


def half_written_requeues(root: Path) -> list[Path]:
    """By their present names, and by those that earlier versions gave them."""
    return [*root.glob(f"{REQUEUED}{PART}"), *root.glob(f"{REQUEUED.replace(NUMBERED, UNNUMBERED)}{PART}")]


def wait_for_no_half_written_requeues(root: Path, seconds: float = 60.0) -> None:
    """The other ranks' part of it: waits until the first has removed them, which it does not in a command that is refused."""
    for _ in range(int(seconds * 10)):
        if not half_written_requeues(root):
            return
        sleep(0.1)
