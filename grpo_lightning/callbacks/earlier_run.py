"""What an earlier run left in the folder of one that starts anew: put aside, neither mixed in nor overwritten."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

RESULTS = ("checkpoints", "completions", "hf", "summary.json", "system.json", "report.html")
"""What a run writes into ``trainer.default_root_dir`` beside the logs of its launches."""


class EarlierRun(Callback):
    """Puts an earlier run's results aside once training starts, so not for a run that is refused before that."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """On the first rank, before anything is written."""
        if trainer.is_global_zero:
            mine = [logger.log_dir for logger in trainer.loggers if logger.log_dir]
            put_aside(Path(trainer.default_root_dir), mine)


def put_aside(root: Path, mine: Sequence[str] = ()) -> Path | None:
    """Moves an earlier run into ``earlier-1``, ``earlier-2``, ... inside ``root``; None where there is none.

    What is there then is a run directory of its own, with the config and the numbers that its checkpoints belong to. A folder without checkpoints and completions holds nothing that a run would be missed for. One that SLURM has queued
    again goes on by itself, and nothing is moved.

    Args:
        root: ``trainer.default_root_dir``.
        mine: Directories in which the new run logs; they stay.
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
    kept = {Path(path).resolve() for path in mine}
    launches = [path for path in root.glob("logs/version_*") if path.resolve() not in kept]
    for launch in launches:
        (place / "logs").mkdir(exist_ok=True)
        os.replace(launch, place / "logs" / launch.name)
    print(
        f"{root} held an earlier run, which this one does not continue (that would be --ckpt_path last). All of it is now "
        f"in {place}.",
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
