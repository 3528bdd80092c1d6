"""The steps that a run of the command line has logged."""

from __future__ import annotations

import csv
from pathlib import Path


def logged_steps(run: Path) -> list[dict[str, str]]:
    """Metrics of each step by name, in order, of a run that may have been ended in the middle of a row; empty without any.

    Args:
        run: Its ``trainer.default_root_dir``, where it has run once.
    """
    for path in run.glob("logs/version_*/metrics.csv"):
        whole = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        return [row for row in csv.DictReader(whole) if row.get("step_time")]
    return []
