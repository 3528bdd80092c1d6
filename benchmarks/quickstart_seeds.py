"""Does a quickstart learn, whatever the seed? Runs it once per seed and records both accuracies and the curve.

python benchmarks/quickstart_seeds.py            # seeds 0, 1, 2; writes benchmarks/results/quickstart_seeds.json
python benchmarks/quickstart_seeds.py --config configs/quickstart_tools.yaml     # writes quickstart_tools_seeds.json
python benchmarks/quickstart_seeds.py --config configs/smollm2_tools.yaml        # a real model on a GPU; see smollm2_tools.py
python benchmarks/quickstart_seeds.py --plot docs/images/quickstart.png      # draws the recorded curves
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sides.command import this_command
from sides.record import versions

ROOT = Path(__file__).parent.parent
CLAIMS = {
    "quickstart": {"start_at_least": 0.25, "start_at_most": 0.60, "gain_at_least": 0.30, "seconds_at_most": 180.0},
    "quickstart_tools": {"start_at_least": 0.0, "start_at_most": 0.30, "gain_at_least": 0.50, "seconds_at_most": 180.0},
    "smollm2_tools": {"start_at_least": 0.0, "start_at_most": 0.6, "gain_at_least": 0.3, "seconds_at_most": 300.0},
}
"""By the name of the config."""
GREEDY = ("strict", "accuracy")
CLAIMED = {"smollm2_tools": ("sampled",)}
"""What of a run the claim is about, where it is not the greedy answers: SmolLM2's are right from the start."""


def run_seed(seed: int, config: str, arguments: list[str]) -> dict:
    """One run in its own process; wall and processor seconds include start-up."""
    folder = ROOT / "runs" / f"{Path(config).stem}-seed{seed}"
    command = [sys.executable, "-m", "grpo_lightning", "fit", "--config", config, f"--seed_everything={seed}"]
    command += [f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false", *arguments]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    summary = json.loads((folder / "summary.json").read_text())
    newest = max(folder.glob("logs/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    with newest.open() as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("rewards/accuracy/mean")]
    curve = {name: [round(float(row[name]), 4) for row in rows] for name in ("rewards/accuracy/mean", "reward")}
    return {"seed": seed, **summary, "process_seconds": round(wall, 1), "cpu_seconds": round(cpu, 1), "curve": curve}


def holds(run: dict, claim: dict, kinds: Sequence[str] = GREEDY) -> bool:
    """True if a run keeps the quickstart's promise, start-up included."""
    start = claim["start_at_least"] <= run[f"{kinds[0]}_before"] <= claim["start_at_most"]
    gain = min(run[f"{kind}_after"] - run[f"{kind}_before"] for kind in kinds)
    return start and gain >= claim["gain_at_least"] and run["process_seconds"] <= claim["seconds_at_most"]


def plot(results: dict, path: Path) -> None:
    """Sampled training accuracy by step, one line a seed, held-out greedy accuracy at both ends."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
    colours = ["#1b6ca8", "#d1495b", "#2e8b57", "#8a5fbf"]
    for run, colour in zip(results["runs"], colours, strict=False):
        curve = run["curve"]["rewards/accuracy/mean"]
        smooth = [sum(curve[max(0, i - 4) : i + 1]) / len(curve[max(0, i - 4) : i + 1]) for i in range(len(curve))]
        axes.plot(curve, color=colour, alpha=0.22, linewidth=1)
        axes.plot(smooth, color=colour, linewidth=1.8, label=f"seed {run['seed']}")
        ends = ([0, len(curve)], [run["strict_before"], run["strict_after"]])
        axes.plot(*ends, "o", color=colour, markersize=6)
    axes.set(xlabel="GRPO step", ylabel="accuracy", ylim=(0, 1.02), xlim=(-1.5, None))
    axes.set_title("sampled training accuracy (lines, mean of 5 steps) and held-out greedy accuracy (dots)", fontsize=9)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> int:
    """Returns 1 if a run does not keep the promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/CONFIG_seeds.json")
    parser.add_argument("--plot", type=Path, help="draw the recorded curves instead of running")
    arguments, passed_on = parser.parse_known_args()
    name = Path(arguments.config).stem
    out = arguments.out or ROOT / "benchmarks/results" / f"{name}_seeds.json"
    if arguments.plot:
        plot(json.loads(out.read_text()), arguments.plot)
        return 0
    claim, kinds = CLAIMS[name], CLAIMED.get(name, GREEDY)
    runs = [run_seed(seed, arguments.config, passed_on) for seed in arguments.seeds]
    results = {
        "command": this_command("benchmarks/quickstart_seeds.py"),
        "claim": claim,
        "holds": all(holds(run, claim, kinds) for run in runs),
        "cores": os.cpu_count(),
        "versions": versions(),
        "runs": runs,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    for run in runs:
        found = {key: value for key, value in run.items() if key != "curve"}
        print(found, "holds" if holds(run, claim, kinds) else "DOES NOT HOLD")
    return 0 if results["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
