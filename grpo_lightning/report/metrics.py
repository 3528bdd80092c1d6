"""The metrics of a run, over all its launches."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field
from pathlib import Path

from grpo_lightning.report.small_files import MAX_DIGITS

EDGE = 0.1
"""Share of the steps that counts as the start and as the end of a run, in every part of the page."""
OF_EVERY_STEP = ("reward", "loss")
"""Metrics of training steps; other stages than GRPO have no reward."""
MAX_FLOAT32 = 3.4028234663852886e38


@dataclass
class Series:
    """One metric: a value at each of some steps, ascending."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def edge_means(self, share: float) -> tuple[float, float]:
        """Means over the first and over the last ``share`` of the points, at least one each.

        Example:
            >>> Series([0, 1, 2, 3], [0.0, 2.0, 4.0, 6.0]).edge_means(0.5)
            (1.0, 5.0)
        """
        count = max(1, round(len(self.values) * share))
        first, last = self.values[:count], self.values[-count:]
        return sum(first) / len(first), sum(last) / len(last)


def launch_directories(run: Path, holding: str = "metrics.csv") -> list[Path]:
    """Directories with a metrics.csv, one per launch, oldest first: ``logs/version_0``, ``logs/version_1``, ...

    A launch of fewer steps than trainer.log_every_n_steps has none; each has a config.yaml, which may be asked for instead.

    Earlier runs in ``earlier/1``, ``earlier/2``, ... (see callbacks/earlier_run.py) are runs of their own.
    """
    found = [path.parent for path in run.glob(f"**/{holding}") if path.is_file()]
    found = [path for path in found if "earlier" not in path.relative_to(run).parts]

    def age(path: Path) -> tuple[int, str]:
        version = re.search(r"version_(\d+)$", path.name)
        return (int(version[1]) if version else -1, str(path))

    return sorted(found, key=age)


def that_trained(launches: list[Path]) -> list[Path]:
    """Those with metrics of training steps; where none has, all of them.

    ``validate`` and ``test`` log into a directory of their own too, whose one line is at the step of the weights: beside those of
    the run it would take the place of all steps from there on.
    """
    files = {launch: launch / "metrics.csv" for launch in launches}
    return [launch for launch, metrics in files.items() if metrics.is_file() and _has_trained(metrics)] or launches


def _has_trained(metrics: Path) -> bool:
    with metrics.open(newline="", encoding="utf-8", errors="replace") as file:
        return not {*OF_EVERY_STEP}.isdisjoint(file.readline().strip().split(","))


def read_metrics(launches: list[Path]) -> dict[str, Series]:
    """Each metric over all launches. Where a launch repeats steps of an earlier one, its own values count.

    A launch that resumed at step 50 replaces what the launch before wrote from step 50 on, and one that started again
    from the beginning replaces everything.
    """
    merged: dict[str, dict[int, float]] = {}
    for launch in launches:
        rows = _rows(launch / "metrics.csv")
        if not rows:
            continue
        first = min(step for step, _ in rows)
        for points in merged.values():
            for step in [step for step in points if step >= first]:
                del points[step]
        for step, values in rows:
            for name, value in values.items():
                merged.setdefault(name, {})[step] = value
    return {
        name: Series(sorted(points), [points[step] for step in sorted(points)])
        for name, points in sorted(merged.items())
        if points
    }


def _rows(path: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, metrics) of the complete lines; a line that is being written is left for the next time.

    Steps are counted from 1, as the run's output does; loggers have how many came before.
    """
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.reader(line.replace("\0", "") for line in file)
        try:
            header = next(reader, [])
            lines = [dict(zip(header, line, strict=True)) for line in reader if len(line) == len(header)]
        except csv.Error:  # a file of something else
            return []
    rows = []
    for line in lines:
        step = line.pop("step", "")
        if step.isascii() and step.isdigit() and len(step) <= MAX_DIGITS:
            rows.append((int(step) + 1, {name: float(text) for name, text in line.items() if _is_number(text)}))
    return rows


def _is_number(text: str) -> bool:
    """Whether a curve can show it: metrics are float32, beyond whose range sums of them would be infinite."""
    try:
        return abs(float(text)) <= MAX_FLOAT32
    except ValueError:
        return False
