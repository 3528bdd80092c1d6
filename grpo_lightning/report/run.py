"""A run directory, read: metrics, completions, config, system."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from grpo_lightning.report.completions import read_completions
from grpo_lightning.report.lengths import length_percentiles
from grpo_lightning.report.metrics import Series, launch_directories, read_metrics


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
    """config.yaml of the last launch, as it is on disk."""
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
    launches = launch_directories(path)
    completions = read_completions(path, max_completions)
    if not launches and completions is None:
        raise FileNotFoundError(
            f"{path}: no metrics.csv and no completions below it. Give the directory that trainer.default_root_dir "
            "named; a run that uses another logger than CSVLogger has completions only."
        )
    config = launches[-1] / "config.yaml" if launches else path / "config.yaml"
    text = config.read_text(encoding="utf-8", errors="replace") if config.exists() else ""
    newest = max((launch / "metrics.csv").stat().st_mtime for launch in launches) if launches else time.time()
    return Run(
        name=path.resolve().name,
        metrics=length_percentiles(completions) | read_metrics(launches),
        launches=len(launches),
        age=max(0.0, time.time() - newest),
        config=text,
        settings=flat_settings(_read_yaml(text)),
        system=_read_json(path / "system.json"),
        summary=_read_json(path / "summary.json"),
        completions=completions,
    )


def flat_settings(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names; lists stay in one piece.

    Example:
        >>> flat_settings({"model": {"beta": 0.0, "rewards": ["accuracy"]}})
        {'model.beta': '0.0', 'model.rewards': '["accuracy"]'}
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flat_settings(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def _read_yaml(text: str) -> dict[str, Any]:
    """A config; nothing where the file was cut off, or is something else."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def _read_json(path: Path) -> dict[str, Any]:
    """An object; nothing where the file is not there, was cut off, or is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
