"""What an earlier run left where one that starts anew will write: put aside, neither mixed in nor overwritten."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from grpo_lightning.callbacks.completions import CompletionWriter
from grpo_lightning.callbacks.export import HuggingFaceExport
from grpo_lightning.distributed.checkpoint_io import newest
from grpo_lightning.distributed.moved_folder import REQUEUED, finish_moves
from grpo_lightning.errors import ExplainedError

RESULTS = (REQUEUED, "checkpoints", "completions", "hf", "summary.json", "system.json", "report.html")
"""What a run writes into ``trainer.default_root_dir`` beside the logs of its launches."""

CHECKPOINTS, COMPLETIONS, EXPORTS = ("*.ckpt",), ("step-*.parquet*",), ("last", "last-adapter", "step-[0-9]*")
"""What it writes into folders that settings have named."""


class EarlierRun(Callback):
    """Puts an earlier run's results aside once training starts, so not for a run that is refused before that."""

    def __init__(self) -> None:
        self.has_started = False
        """Whether there was a step to train."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """On the first rank, before anything is written; not for a run that goes on from its own checkpoint.

        Raises:
            ExplainedError: If something cannot be moved.
        """
        self.has_started = True
        root, folders = Path(trainer.default_root_dir).resolve(), own_folders(trainer)
        if not trainer.is_global_zero or goes_on_in_place(trainer.ckpt_path, root, folders):
            return
        try:
            for folder in checkpoint_folders(trainer):
                finish_moves(folder)  # what a kill has left of a move would come back in the new run
            inside = {folder: names for folder, names in folders.items() if root in (folder, *folder.parents)}
            put_aside(root, [log.log_dir for log in trainer.loggers if log.log_dir], inside)
            for folder in folders.keys() - inside.keys():
                put_aside_outside(folder, folders[folder])
        except OSError as error:
            raise ExplainedError(
                f"{root} holds an earlier run, which cannot be put aside ({error}). Set another trainer.default_root_dir, or "
                "make what is named writable."
            ) from error


def goes_on_in_place(ckpt_path: Any, root: Path, folders: Iterable[Path]) -> bool:
    """Whether a checkpoint is one of this folder's own run; that of another would go on over this one's results."""
    if not ckpt_path or "://" in str(ckpt_path):
        return bool(ckpt_path)
    path = Path(ckpt_path).resolve()
    return (root in path.parents and root / "earlier" not in path.parents) or path.parent in folders


def put_aside(root: Path, mine: Sequence[str] = (), further: Mapping[Path, Sequence[str]] | None = None) -> Path | None:
    """Moves an earlier run into ``earlier/1``, ``earlier/2``, ... inside ``root``; None where there is none.

    What is there then is a run directory of its own, with the config and the numbers that its checkpoints belong to. A
    folder without checkpoints and completions holds nothing that a run would be missed for. Inside, because a move within
    a file system costs nothing and cannot fail halfway. A process that is killed between two moves leaves ``earlier/moving``,
    which the next start completes. None is ever deleted: weights are the user's; how much they take is said each time.

    Args:
        root: ``trainer.default_root_dir``.
        mine: Directories in which the new run logs; they stay.
        further: Folders in ``root`` that settings have named, with patterns of what runs write there.
    """
    further = {} if further is None else further
    moving = root / "earlier" / "moving"
    has_results = has_files(root / "checkpoints") or has_files(root / "completions")
    if not has_results and not moving.exists() and not any(found(*each) for each in further.items()):
        return None
    moving.mkdir(parents=True, exist_ok=True)
    for folder, names in [(root, RESULTS), *further.items()]:
        move_all(folder, names, moving / folder.relative_to(root))
    kept = {Path(path).resolve() for path in mine}
    launches = [path for path in root.glob("logs/version_*") if path.resolve() not in kept]
    for launch in launches:
        (moving / "logs").mkdir(exist_ok=True)
        os.replace(launch, moving / "logs" / launch.name)
    place = unused(root / "earlier")
    os.replace(moving, place)
    print(
        f"{root} held an earlier run, which this one does not continue. All of it is now in {place}; "
        f"--trainer.default_root_dir {shlex.quote(str(place))} --ckpt_path last would go on with it.{space_taken(place.parent)}",
        flush=True,
    )
    return place


def put_aside_outside(folder: Path, names: Sequence[str]) -> Path | None:
    """Moves what runs write into a folder outside ``root`` to ``folder-earlier/1``, ...; None where there is nothing.

    Only that: the folder may be the user's home, or hold the root. Beside it, because pyarrow reads a folder of completions
    with all that is below it; the root of a file system has nothing beside it.
    """
    if not found(folder, names):
        return None
    place = unused(folder / "earlier" if folder.is_mount() else folder.with_name(f"{folder.name}-earlier"))
    move_all(folder, names, place)
    print(f"{folder} held an earlier run's files, which are now in {place}.", flush=True)
    return place


def move_all(folder: Path, names: Iterable[str], place: Path) -> None:
    """Moves what matches one of the patterns into ``place``, which is made for it."""
    for path in found(folder, names):
        place.mkdir(parents=True, exist_ok=True)
        os.replace(path, place / path.name)


def found(folder: Path, names: Iterable[str]) -> list[Path]:
    """What matches one of the patterns."""
    return sorted({path for name in names for path in folder.glob(name)})


def has_files(folder: Path) -> bool:
    """Whether it is a directory that holds anything."""
    return folder.is_dir() and any(folder.iterdir())


def unused(folder: Path) -> Path:
    """``folder/1``, or the number after the highest that is there: one that was removed does not come back."""
    taken = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
    return folder / str(max(taken, default=0) + 1)


def space_taken(folder: Path) -> str:
    """A sentence about several earlier runs and their size; nothing of one."""
    count = sum(path.name.isdecimal() for path in folder.iterdir())
    if count < 2:
        return ""
    size = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # removed by the user, just now
            size += path.lstat().st_size if path.is_file() and not path.is_symlink() else 0
    return f" {folder} holds {count} earlier runs, {size / 1e9:.1f} GB; remove those that you no longer need."


def own_folders(trainer: Trainer) -> dict[Path, tuple[str, ...]]:
    """Folders that settings such as ``checkpoint.dirpath`` have named, with patterns of what runs write there.

    Those of the default places, which are moved as a whole, are not among them.
    """
    folders: dict[Path, tuple[str, ...]] = {}
    root = Path(trainer.default_root_dir).resolve()

    def add(folder: Path, names: tuple[str, ...]) -> None:
        folder = folder.resolve()
        if not any(root / name in (folder, *folder.parents) for name in RESULTS):
            folders[folder] = (*folders.get(folder, ()), *names)

    for folder in checkpoint_folders(trainer):
        add(folder, CHECKPOINTS)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, CompletionWriter):
            add(callback.directory(trainer), COMPLETIONS)
        elif isinstance(callback, HuggingFaceExport):
            add(callback.root(trainer), EXPORTS)
    return folders


def checkpoint_folders(trainer: Trainer) -> Iterable[Path]:
    """Where the Trainer's ModelCheckpoints write."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath:
            yield Path(callback.dirpath)


def check_own_start(trainer: Trainer, **settings: str | None) -> None:
    """Refuses to start from what an earlier run left, and what starting anew would put aside.

    Args:
        trainer: Whose folders are meant.
        settings: Paths, by the names of their settings below ``model``.

    Raises:
        ValueError: Naming the setting.
    """
    root = Path(trainer.default_root_dir)
    taken = [path.resolve() for each in [(root, RESULTS), *own_folders(trainer).items()] for path in found(*each)]
    for name, value in settings.items():
        path = Path(value).resolve() if value else None
        if path is not None and path.exists() and any(place in (path, *path.parents) for place in taken):
            raise ValueError(
                f"model.{name}={value} lies where this run (trainer.default_root_dir={root}) would put its own results in "
                "its place. Set another trainer.default_root_dir. Folders that a dirpath names count too."
            )


def newest_checkpoint(root: Path, folders: Iterable[Path]) -> Path | None:
    """What ``--ckpt_path last`` means: the newest of each folder's last.ckpt and of what SLURM asked for.

    Where there is none, the newest checkpoint of another name: with ``checkpoint.save_last: link``, a run may be killed when
    the checkpoint that last.ckpt leads to has been replaced, and the link not yet.
    """
    last, others = saved_checkpoints(root, folders)
    return newest(last) or newest(others)


def saved_checkpoints(root: Path, folders: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Those named last.ckpt with those that Lightning saved in ``root`` when SLURM asked for it, and those of other names.

    What a kill has left between two moves of a sharded checkpoint is put in its place.
    """
    folders = list(folders)
    for folder in folders:
        finish_moves(folder)
    finish_moves(root, REQUEUED)
    last = {path for folder in folders for path in folder.glob("last*.ckpt")} | {*root.glob(REQUEUED)}
    others = {path for folder in folders for path in folder.glob("*.ckpt")} - last
    return [path for path in sorted(last) if path.exists()], [path for path in sorted(others) if path.exists()]
