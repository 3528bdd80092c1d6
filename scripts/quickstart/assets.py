"""Writing the assets of a quickstart: rows, a run of the project's command line, and the export that is kept."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def write_rows(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Write one JSON line a row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def grpo_lightning(command: str, config: Path, settings: Mapping[str, Any]) -> None:
    """Run a command of the project on one thread: sums in another order on more threads would give other weights."""
    options = [f"--{name}={value}" for name, value in settings.items()]
    line = [sys.executable, "-m", "grpo_lightning", command, f"--config={config}", *options]
    subprocess.run(line, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})


def keep_export(start: Path, export: Path, target: Path) -> None:
    """Copy the start with the exported weights in it: its tokenizer files are shorter than what loading made of them.

    Files are readable by all; safetensors are written 0600, which a package would carry on.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in start.iterdir():
        source = export / path.name if path.suffix == ".safetensors" else path
        shutil.copyfile(source, target / path.name)
