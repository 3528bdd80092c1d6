"""A run directory, read: metrics, completions, config, system."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_lightning.report.completions import length_percentiles, read_completions
from grpo_lightning.report.metrics import Series, launch_directories, read_metrics, that_trained
from grpo_lightning.report.small_files import read_json, read_settings, read_text


@dataclass
class Run:
    """What the report knows about one run."""

    name: str
    metrics: dict[str, Series]
    launches: int
    """Times that it was started; more than one where it was resumed."""
    age: float
    """Seconds since it last wrote a metric."""
    config: str = ""
    """config.yaml of the last launch that trained, as it is on disk."""
    settings: dict[str, str] = field(default_factory=dict)
    """The same flat: ``model.beta`` -> ``0.0``."""
    system: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    completions: dict[str, Any] | None = None


def read_run(path: Path, max_completions: int = 100_000) -> Run:
    """Reads a run directory, also of a run that is still being written.

    Raises:
        FileNotFoundError: If there are neither metrics nor completions.
    """
    launches = that_trained(launch_directories(path))
    completions = read_completions(path, max_completions)
    if not launches and completions is None:
        raise FileNotFoundError(
            f"{path}: no metrics.csv and no completions below it. Give the directory that trainer.default_root_dir "
            "named; a run that uses another logger than CSVLogger has completions only."
        )
    config = (launches or launch_directories(path, "config.yaml") or [path])[-1] / "config.yaml"
    text, system = read_text(config), read_json(path / "system.json")
    if not isinstance(system.get("packages", {}), dict):
        del system["packages"]
    newest = max((launch / "metrics.csv").stat().st_mtime for launch in launches) if launches else time.time()
    return Run(
        name=path.resolve().name,
        metrics=length_percentiles(completions) | read_metrics(launches),
        launches=len(launches),
        age=max(0.0, time.time() - newest),
        config=text,
        settings=read_settings(text),
        system=system,
        summary=read_json(path / "summary.json"),
        completions=completions,
    )
