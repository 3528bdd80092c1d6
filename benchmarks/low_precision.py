"""What a run learns in each precision and with each optimizer: the five arms between which docs/precision.md chooses.

python benchmarks/smollm2.py runs/smollm2                                   # once: the model directory
python benchmarks/low_precision.py --model runs/smollm2 --seeds 0,1,2       # 1 GPU; benchmarks/results/low_precision.json
python benchmarks/low_precision.py --model runs/smollm2 --device cpu --steps 2 --seeds 0 --arms bf16-mixed  # that it runs

GRPO on two-digit sums as in learning.py, sampled by TransformersGenerator. Held-out accuracy is that of the weights as an
engine or an export gets them, in bfloat16. ``changed`` is update/changed_since_start after the first and the last step.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from learning import ROOT, prepare
from sides import child
from sides.command import this_command
from sides.learning_ours import config_of
from sides.learning_run import ON_CPU, LearningRun
from sides.record import versions

TORCH = {"class_path": "torch.optim.AdamW"}
KAHAN = {"class_path": "optimi.AdamW"}
STOCHASTIC = {"class_path": "torchao.optim.adam._AdamW", "init_args": {"bf16_stochastic_round": True}}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "32-true": ("32-true", TORCH),
    "bf16-mixed": ("bf16-mixed", TORCH),
    "bf16-true plain": ("bf16-true", TORCH),
    "bf16-true kahan": ("bf16-true", KAHAN),
    "bf16-true stochastic": ("bf16-true", STOCHASTIC),
}
"""Precision and optimizer; betas, eps and learning rate are the same in all."""


def arm_config(arm: str, run: LearningRun, run_file: str, seed: int) -> dict[str, Any]:
    """The config of learning.py with the arm's precision and optimizer."""
    precision, optimizer = ARMS[arm]
    config = config_of(run, run_file, seed, time.time())
    common = {"lr": run.learning_rate, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
    config["trainer"] |= {"precision": precision, "default_root_dir": str(folder_of(run, arm, seed))}
    config["trainer"]["callbacks"][-1]["init_args"]["side"] = name_of(arm)
    config["model"] |= {
        "generator": {"class_path": "grpo_lightning.generation.TransformersGenerator"},
        "importance_sampling_correction": False,
        "optimizer": {**optimizer, "init_args": common | optimizer.get("init_args", {})},
        "allow_rounded_steps": arm == "bf16-true plain",
    }
    return config


def name_of(arm: str) -> str:
    return arm.replace(" ", "_")


def folder_of(run: LearningRun, arm: str, seed: int) -> Path:
    return Path(run.folder, f"{name_of(arm)}_{seed}")


def start(arm: str, seed: int, run: LearningRun, run_file: Path) -> subprocess.Popen[bytes]:
    """A process that trains one arm from one seed."""
    path = Path(run.folder, f"{name_of(arm)}_{seed}.yaml")
    path.write_text(yaml.safe_dump(arm_config(arm, run, str(run_file), seed)), encoding="utf-8")
    environment = child.environment(HF_HUB_OFFLINE="1")
    command = [sys.executable, "-m", "grpo_lightning", "fit", "--config", str(path)]
    with path.with_suffix(".log").open("wb") as log:
        return child.start(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def result_of(arm: str, seed: int, run: LearningRun) -> dict[str, Any] | None:
    """Accuracies and shares of changed weights; None for a run that came to no step."""
    record_file, changed = run.record_file(name_of(arm), seed), []
    if not record_file.exists():
        return None
    for metrics in folder_of(run, arm, seed).glob("logs/version_*/metrics.csv"):
        with metrics.open() as file:
            found = [row.get("update/changed_since_start") for row in csv.DictReader(file)]
            changed = [float(value) for value in found if value]
    record = json.loads(record_file.read_text(encoding="utf-8"))
    return {
        "arm": arm,
        "seed": seed,
        "device": record["device"],
        "steps": len(record["steps"]),
        "accuracy": [[at["step"], at["accuracy"]] for at in record["evaluations"]],
        "reward": [step["reward"] for step in record["steps"]],
        "changed": [changed[0], changed[-1]] if changed else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=5e-6)
    parser.add_argument("--parallel", type=int, default=5, help="processes at a time")
    parser.add_argument("--seconds", type=float, default=500, help="end everything after it")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "low_precision")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "low_precision.json")
    options = parser.parse_args()
    places = {"folder": str(options.folder.resolve()), "model": str(options.model.resolve())}
    settings = {
        "steps": options.steps,
        "learning_rate": options.learning_rate,
        "eval_every": max(1, options.steps // 4),
    }
    run = replace(LearningRun() if options.device == "cuda" else ON_CPU, **settings, **places)
    run_file, started = prepare(run), time.perf_counter()
    waiting = [(arm, seed) for seed in options.seeds for arm in options.arms]
    every, running = list(waiting), []
    with child.ended(processes := []):
        while (waiting or running) and time.perf_counter() - started < options.seconds:
            while waiting and len(running) < options.parallel:
                running.append(start(*waiting.pop(0), run, run_file))
                processes.append(running[-1])
            time.sleep(1.0)
            running = [process for process in running if process.poll() is None]
            results = [found for arm, seed in every if (found := result_of(arm, seed, run)) is not None]
            store(options, run, results)
    for found in results:
        print(found["arm"], found["seed"], "accuracy", found["accuracy"], "changed", found["changed"])


def store(options: argparse.Namespace, run: LearningRun, results: list[dict[str, Any]]) -> None:
    """Writes what there is."""
    of_all = {
        "command": this_command("benchmarks/low_precision.py"),
        "settings": run.settings(),
        "versions": versions(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(of_all | {"runs": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
