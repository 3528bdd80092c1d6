"""Draws what learning.py has recorded: held-out accuracy over completions, and over seconds of training.

python benchmarks/learning_plot.py benchmarks/results/learning_{ours,partial,trl}_cuda.json   # docs/images/learning.png
python benchmarks/learning_plot.py ours.json trl.json --out learning.png                # sides that ran by themselves

A line is the mean over seeds, the area behind it goes from the worst seed to the best one. Over seconds, each seed's curve is
read in a straight line between its evaluations, as far as all seeds of the side have come.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from sides.learning_summary import by_completions, table

ROOT = Path(__file__).resolve().parent.parent
STYLES = {
    "ours": ("grpo_lightning", "#1b6ca8"),
    "partial": ("grpo_lightning, partial rollouts", "#66a182"),
    "trl": ("TRL 1.16", "#d1495b"),
}
Bands = tuple[np.ndarray, np.ndarray]


def load(files: list[Path]) -> list[dict[str, Any]]:
    """The runs of all result files."""
    return [run for file in files for run in json.loads(file.read_text(encoding="utf-8"))["runs"]]


def over_completions(runs: list[dict[str, Any]]) -> Bands:
    """(points,) completions and (seeds, points) accuracies."""
    found = by_completions(runs, "evaluations", "accuracy")
    return np.array(list(found)), np.array(list(found.values())).T


def over_seconds(runs: list[dict[str, Any]]) -> Bands:
    """(points,) seconds and (seeds, points) accuracies."""
    curves = [[(place["seconds"], place["accuracy"]) for place in run["evaluations"]] for run in runs]
    seconds = np.linspace(0.0, min(curve[-1][0] for curve in curves), 200)
    return seconds, np.array([np.interp(seconds, *zip(*curve, strict=True)) for curve in curves])


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Two panels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.6), sharey=True, layout="constrained")
    for side, (label, colour) in STYLES.items():
        of_side = [run for run in runs if run["side"] == side and len(run["evaluations"]) > 1]
        if not of_side:
            continue
        for panel, (places, values) in zip(panels, (over_completions(of_side), over_seconds(of_side)), strict=True):
            panel.plot(places, values.mean(0), color=colour, linewidth=2, label=f"{label}, {len(of_side)} seeds")
            panel.fill_between(places, values.min(0), values.max(0), color=colour, alpha=0.18, linewidth=0)
    panels[0].set(xlabel="completions sampled", ylabel="held-out accuracy, greedy", ylim=(0, 1.02))
    panels[1].set(xlabel="seconds of training, evaluation left out")
    for panel in panels:
        panel.set_xlim(left=0)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "learning.png")
    options = parser.parse_args()
    runs = load(options.results)
    print(table(runs))
    plot(runs, options.out)


if __name__ == "__main__":
    main()
