"""How many completions a fresh start needs to learn what GRPO has taught the quickstart's toy, from the result as a teacher.

python benchmarks/distill_quickstart.py      # seeds 0, 1; writes benchmarks/results/distill_quickstart.json

For each seed: GRPO by configs/quickstart.yaml makes the teacher, then configs/distillation.yaml teaches the model that the teacher
started from. Held-out accuracy (greedy, strict) is measured every few steps of both. The claim: at most half of the teacher's
completions for 90% of its accuracy.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sides.command import this_command
from sides.record import versions

ROOT = Path(__file__).parent.parent
LEVEL, SHARE = 0.9, 0.5
ACCURACY = "val/rewards/accuracy_strict"
COMPLETIONS = {"quickstart": 32 * 8, "distillation": 64 * 2}
"""Of a step, by config."""


def train(config: str, folder: Path, seed: int, every: int, *options: str) -> list[dict[str, float]]:
    """Runs a config; returns completions seen and held-out accuracy, from before the first step on."""
    command = [sys.executable, "-m", "grpo_lightning", "fit", "--config", f"configs/{config}.yaml"]
    command += [
        f"--seed_everything={seed}",
        f"--trainer.default_root_dir={folder}",
        "--trainer.enable_progress_bar=false",
    ]
    command += [f"--trainer.val_check_interval={every}", "--trainer.check_val_every_n_epoch=null", *options]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    newest = max(folder.glob("logs/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    with newest.open() as lines:
        rows = [row for row in csv.DictReader(lines) if row.get(ACCURACY)]
    before = json.loads((folder / "summary.json").read_text())["strict_before"]
    measured = [(int(row["step"]) + 1, round(float(row[ACCURACY]), 4)) for row in rows]
    return [
        {"completions": steps * COMPLETIONS[config], "accuracy": accuracy}
        for steps, accuracy in [(0, before), *measured]
    ]


def completions_to(level: float, curve: list[dict[str, float]]) -> float | None:
    """The first measurement at ``level`` or above; None where there is none.

    Example:
        >>> completions_to(0.8, [{"completions": 0, "accuracy": 0.3}, {"completions": 64, "accuracy": 0.81}])
        64
    """
    return next((point["completions"] for point in curve if point["accuracy"] >= level), None)


def compare(teacher: list[dict[str, float]], student: list[dict[str, float]]) -> dict[str, Any]:
    """Whether the claim holds, and against GRPO's own way to the same level."""
    level = LEVEL * teacher[-1]["accuracy"]
    took, grpo_took = completions_to(level, student), completions_to(level, teacher)
    return {
        "teacher_accuracy": teacher[-1]["accuracy"],
        "student_accuracy": student[-1]["accuracy"],
        "level": round(level, 4),
        "completions_of_teacher": teacher[-1]["completions"],
        "completions_to_level": took,
        "completions_of_grpo_to_level": grpo_took,
        "share": None if took is None else round(took / teacher[-1]["completions"], 4),
        "share_of_grpo_to_level": None if None in (took, grpo_took) else round(took / grpo_took, 4),
        "holds": took is not None and took <= SHARE * teacher[-1]["completions"],
    }


def main() -> int:
    """Returns 1 if a seed does not keep the claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "distill_quickstart")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/distill_quickstart.json")
    arguments, passed_on = parser.parse_known_args()
    runs = []
    for seed in arguments.seeds:
        folders = {name: arguments.folder / f"{name}-seed{seed}" for name in ("teacher", "student")}
        teacher = train("quickstart", folders["teacher"], seed, 10, *passed_on)
        told = f"--model.distillation.teacher={folders['teacher'] / 'hf/last'}"
        student = train("distillation", folders["student"], seed, 5, told, *passed_on)
        runs.append({"seed": seed, **compare(teacher, student), "teacher": teacher, "student": student})
        print(json.dumps({name: value for name, value in runs[-1].items() if name not in folders}), flush=True)
    results = {
        "command": this_command("benchmarks/distill_quickstart.py"),
        "claim": {"of_the_teachers_accuracy": LEVEL, "share_of_completions_at_most": SHARE},
        "holds": all(run["holds"] for run in runs),
        "versions": versions(),
        "runs": runs,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0 if results["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
