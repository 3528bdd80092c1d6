"""What an earlier run left in the folder of one that starts anew: put aside, neither mixed in nor overwritten."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

RESULTS = ("checkpoints", "completions", "hf", "summary.json", "system.json", "report.html")
"""What a run writes into ``trainer.default_root_dir`` beside its numbered logs."""


class EarlierRun(Callback):
    """Puts an earlier run's results aside once training starts, so not for a run that is refused before that."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """On the first rank, before anything is written."""
        if trainer.is_global_zero:
            put_aside(Path(trainer.default_root_dir))


def put_aside(root: Path) -> Path | None:
    """Moves an earlier run's results into ``earlier-1``, ``earlier-2``, ... inside ``root``; None where there are none.

    A folder without checkpoints and completions holds nothing that a run would be missed for. One that SLURM has queued
    again goes on by itself, and nothing is moved.
    """
    is_used = any((root / name).is_dir() and any((root / name).iterdir()) for name in ("checkpoints", "completions"))
    if not is_used or any(root.glob("hpc_ckpt_*.ckpt")):
        return None
    number = 1
    while (root / f"earlier-{number}").exists():
        number += 1
    place = root / f"earlier-{number}"
    place.mkdir()
    for name in RESULTS:
        if (root / name).exists():
            os.replace(root / name, place / name)
    print(
        f"{root} held an earlier run, which this one does not continue (that would be --ckpt_path last). Its checkpoints, "
        f"completions and export are now in {place}.",
        flush=True,
    )
    return place


def check_last(root: Path) -> None:
    """Refuses to start anew where ``--ckpt_path last`` is asked for and only a checkpoint of another name is there.

    Raises:
        ValueError: With the path of the newest.
    """
    folder = root / "checkpoints"
    saved = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    if saved and not any(path.name.startswith("last") for path in saved) and not any(root.glob("hpc_ckpt_*.ckpt")):
        raise ValueError(
            f"--ckpt_path last: {folder} has no last.ckpt, which was perhaps being written when the run ended. Go on from "
            f"the newest with --ckpt_path '{saved[-1]}', or leave --ckpt_path out to start anew."
        )
