"""What an earlier run left where one that starts anew will write: put aside, neither mixed in nor overwritten."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from grpo_lightning.callbacks.completions import CompletionWriter
from grpo_lightning.callbacks.export import HuggingFaceExport
from grpo_lightning.distributed.checkpoint_io import newest

RESULTS = ("checkpoints", "completions", "hf", "summary.json", "system.json", "report.html")
"""What a run writes into ``trainer.default_root_dir`` beside the logs of its launches."""


class EarlierRun(Callback):
    """Puts an earlier run's results aside once training starts, so not for a run that is refused before that."""

    def __init__(self) -> None:
        self.has_started = False
        """Whether there was a step to train."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """On the first rank, before anything is written; not for a run that a scheduler has queued again."""
        self.has_started = True
        if trainer.is_global_zero and not trainer.ckpt_path:
            put_aside(Path(trainer.default_root_dir), [log.log_dir for log in trainer.loggers if log.log_dir])
            for folder in own_places(trainer):
                if has_files(folder):
                    place = unused(folder.with_name(f"{folder.name}-earlier"))
                    place.parent.mkdir(exist_ok=True)
                    os.replace(folder, place)
                    print(f"{folder} held an earlier run's files, which are now in {place}.", flush=True)


def put_aside(root: Path, mine: Sequence[str] = ()) -> Path | None:
    """Moves an earlier run into ``earlier/1``, ``earlier/2``, ... inside ``root``; None where there is none.

    What is there then is a run directory of its own, with the config and the numbers that its checkpoints belong to. A
    folder without checkpoints and completions holds nothing that a run would be missed for. Inside, because a move within
    a file system costs nothing and cannot fail halfway. None is ever deleted: weights are the user's; how much they take is
    said each time.

    Args:
        root: ``trainer.default_root_dir``.
        mine: Directories in which the new run logs; they stay.
    """
    if not has_files(root / "checkpoints") and not has_files(root / "completions"):
        return None
    place = unused(root / "earlier")
    place.mkdir(parents=True)
    for name in RESULTS:
        if (root / name).exists():
            os.replace(root / name, place / name)
    kept = {Path(path).resolve() for path in mine}
    launches = [path for path in root.glob("logs/version_*") if path.resolve() not in kept]
    for launch in launches:
        (place / "logs").mkdir(exist_ok=True)
        os.replace(launch, place / "logs" / launch.name)
    print(
        f"{root} held an earlier run, which this one does not continue. All of it is now in {place}; "
        f"--trainer.default_root_dir {place} --ckpt_path last would go on with it.{space_taken(place.parent)}",
        flush=True,
    )
    return place


def has_files(folder: Path) -> bool:
    """Whether it is a directory that holds anything."""
    return folder.is_dir() and any(folder.iterdir())


def unused(folder: Path) -> Path:
    """``folder/1``, or the number after the highest that is there: one that was removed does not come back."""
    taken = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
    return folder / str(max(taken, default=0) + 1)


def space_taken(folder: Path) -> str:
    """A sentence about several earlier runs and their size; nothing of one."""
    count = len(list(folder.iterdir()))
    if count < 2:
        return ""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return f" {folder} holds {count} earlier runs, {size / 1e9:.1f} GB; remove those that you no longer need."


def own_places(trainer: Trainer) -> list[Path]:
    """Directories that settings such as ``checkpoint.dirpath`` have put outside ``trainer.default_root_dir``."""
    folders = list(checkpoint_folders(trainer))
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, CompletionWriter):
            folders.append(callback.directory(trainer))
        elif isinstance(callback, HuggingFaceExport):
            folders.append(callback.root(trainer))
    root = Path(trainer.default_root_dir).resolve()
    return [folder for folder in dict.fromkeys(folders) if root not in folder.resolve().parents]


def checkpoint_folders(trainer: Trainer) -> Iterable[Path]:
    """Where the Trainer's ModelCheckpoints write."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath:
            yield Path(callback.dirpath)


def check_own_start(root: Path, **settings: str | None) -> None:
    """Refuses to start from what an earlier run left in ``root``, and what starting anew would put aside.

    Args:
        root: ``trainer.default_root_dir``.
        settings: Paths, by the names of their settings below ``model``.

    Raises:
        ValueError: Naming the setting.
    """
    taken = [(root / name).resolve() for name in RESULTS]
    for name, value in settings.items():
        path = Path(value).resolve() if value else None
        if path is not None and path.exists() and any(place in (path, *path.parents) for place in taken):
            raise ValueError(
                f"model.{name}={value} lies in trainer.default_root_dir={root}, where this run would put its own results in "
                "its place. Set another trainer.default_root_dir."
            )


def newest_checkpoint(root: Path, folders: Iterable[Path]) -> Path | None:
    """The newest of each folder's last.ckpt and of what Lightning saved in ``root`` when SLURM asked for it.

    Where there is none, the newest checkpoint of another name: with ``checkpoint.save_last: link``, a run may be killed when
    the checkpoint that last.ckpt leads to has been replaced, and the link not yet.
    """
    folders = list(folders)
    last = [path for folder in folders for path in folder.glob("last*.ckpt")] + [*root.glob("hpc_ckpt_*.ckpt")]
    others = [path for folder in folders for path in folder.glob("*.ckpt")]
    return newest(path for path in last if path.exists()) or newest(path for path in others if path.exists())
