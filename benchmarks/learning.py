"""Does it learn as TRL does, and how much sooner? A real model, SmolLM2-135M-Instruct, on two-digit sums.

python benchmarks/smollm2.py runs/smollm2                                     # once: the model directory
python benchmarks/learning.py --model runs/smollm2 --seeds 0,1,2              # 1 GPU: one side after the other; 2: at once
python benchmarks/learning.py --model runs/smollm2 --side partial             # ours, with partial rollouts
python benchmarks/learning.py --model runs/smollm2 --device cpu               # minutes: two small steps, to see that it runs
python benchmarks/learning_plot.py benchmarks/results/learning_{ours,partial,trl}_cuda.json   # docs/images/learning.png

Both sides train the same float32 weights (computed in bfloat16 on a GPU) on the same prompts and reward with the same
settings; sides/learning_run.py has them, and each is an option. Seeds differ in the order of prompts and in what is sampled.
Every --eval-every steps the same code answers the held-out prompts greedily; training's clock stands still meanwhile.
Seeds of a side run in one process, or in --parallel-seeds of them at a time, which then share the GPU. The result is rewritten
every few seconds, so a run that is cut off leaves what it came to.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from sides import child
from sides.addition import OPERANDS, addition_rows
from sides.command import this_command
from sides.learning_run import ON_CPU, LearningRun
from sides.learning_summary import summarize, table
from sides.whole_file import write_whole

ROOT = Path(__file__).resolve().parent.parent
SIDES = {"ours": "sides.learning_ours", "trl": "sides.learning_trl", "partial": "sides.learning_partial"}
BOTH = ("ours", "trl")
NOT_OPTIONS = ("task", "device", "folder", "model")
POLL_SECONDS = 2.0


def parse() -> tuple[argparse.Namespace, LearningRun]:
    """Command line; a field of LearningRun that is not given keeps the default of the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, required=True, help="model directory, such as benchmarks/smollm2.py writes"
    )
    parser.add_argument("--side", choices=(*SIDES, "both"), default="both")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--task", choices=OPERANDS, default="add2")
    parser.add_argument("--parallel-seeds", type=int, default=1, help="processes of a side at a time")
    parser.add_argument("--seconds-per-side", type=float, help="end a side after it, and take what it came to")
    parser.add_argument("--level", type=float, help="count seconds to this accuracy; default: what every run reached")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "learning", help="data, configs, records, logs")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/learning_<device>.json")
    for field in fields(LearningRun):
        if field.name not in NOT_OPTIONS:
            kind = {"int": int, "float": float}[str(field.type)]
            parser.add_argument("--" + field.name.replace("_", "-"), type=kind, default=None)
    options = parser.parse_args()
    names = [field.name for field in fields(LearningRun) if field.name not in ("folder", "model")]
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    defaults = LearningRun() if options.device == "cuda" else ON_CPU
    places = {"folder": str(options.folder.resolve()), "model": str(options.model.resolve())}
    run = replace(defaults, **given, **places)
    if run.prompts_per_step * run.num_generations % run.per_device_batch:
        parser.error(f"--per-device-batch={run.per_device_batch} does not divide the completions of a step.")
    return options, run


def prepare(run: LearningRun) -> Path:
    """Writes both datasets and the settings; returns the settings' file."""
    if not Path(run.model, "config.json").exists():
        raise SystemExit(
            f"--model: no config.json in {run.model}. python benchmarks/smollm2.py makes such a directory."
        )
    Path(run.folder).mkdir(parents=True, exist_ok=True)
    for file, rows in zip((run.train_file, run.held_out_file), addition_rows(run.task), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run_file = Path(run.folder, "run.json")
    run.save(run_file)
    return run_file


def gpus() -> list[str]:
    """Those that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    count = torch.cuda.device_count()
    if not count:
        raise SystemExit("--device=cuda: torch sees no GPU here. --device=cpu runs two small steps.")
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (named or [str(index) for index in range(count)])[:count]


def start(side: str, run: LearningRun, run_file: Path, seeds: list[int], gpu: str) -> subprocess.Popen[bytes]:
    """A process that trains the seeds in turn; what it prints goes to a log in the folder."""
    environment = child.environment(
        CUDA_VISIBLE_DEVICES=gpu,
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        OMP_WAIT_POLICY="PASSIVE",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_NO_USAGE_STATS="1",
        LEARNING_STARTED=str(time.time()),
    )
    if not run.on_gpu:
        environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", SIDES[side], str(run_file), *map(str, seeds)]
    log = Path(run.folder, f"{side}_{'_'.join(map(str, seeds))}.log")
    with log.open("wb") as output:
        return child.start(command, env=environment, stdout=output, stderr=subprocess.STDOUT)


def run_sides(
    sides: list[str], options: argparse.Namespace, run: LearningRun, run_file: Path, devices: list[str]
) -> None:
    """Trains all seeds of these sides at once, each side on its device, and rewrites the result meanwhile."""
    shares = [options.seeds[first :: options.parallel_seeds] for first in range(options.parallel_seeds)]
    started, processes, limit = time.perf_counter(), {}, options.seconds_per_side or math.inf
    for side, device in zip(sides, devices, strict=True):
        processes[side] = [start(side, run, run_file, seeds, device) for seeds in shares if seeds]
    all_of_them = [process for group in processes.values() for process in group]
    with child.ended(all_of_them):
        while any(process.poll() is None for process in all_of_them):
            left = started + limit - time.perf_counter()
            if left <= 0:
                print(f"Ended after {limit:.0f} s: {', '.join(sides)}.", flush=True)
                break
            time.sleep(min(POLL_SECONDS, left))
            store(options, run)
        failed = {side for side, group in processes.items() for process in group if process.poll()}
    store(options, run)
    for side in failed:
        logs = sorted(Path(run.folder).glob(f"{side}_*.log"))
        last = "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-3000:]}" for log in logs)
        print(f"{side} failed.\n{last}", flush=True)


def records_of(run: LearningRun) -> list[dict[str, Any]]:
    """Of all runs in the folder with these settings, also of an earlier call for the other side."""
    found = []
    for side in SIDES:
        for file in sorted(Path(run.folder).glob(f"{side}_seed*.json")):
            record = json.loads(file.read_text(encoding="utf-8"))
            if record["settings"] == run.settings():
                found.append(record)
    return found


def store(options: argparse.Namespace, run: LearningRun) -> None:
    """Writes the result as it is now."""
    records = records_of(run)
    if not records:
        return
    out = options.out or ROOT / "benchmarks" / "results" / f"learning_{run.device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    of_all = {
        "command": this_command("benchmarks/learning.py"),
        "model": Path(run.model).name,
        "settings": run.settings(),
    }
    of_all |= {"parallel_seeds": options.parallel_seeds}
    of_all |= {"versions": records[0]["versions"], "summary": summarize(records, options.level)}
    runs = [{name: value for name, value in record.items() if of_all.get(name) != value} for record in records]
    write_whole(out, json.dumps(of_all | {"runs": runs}, indent=1) + "\n")


def main() -> int:
    options, run = parse()
    run_file = prepare(run)
    sides = list(BOTH) if options.side == "both" else [options.side]
    for side in sides:
        for seed in options.seeds:
            run.record_file(side, seed).unlink(missing_ok=True)
    devices = gpus() if run.on_gpu else [""]
    if len(devices) >= len(sides):
        run_sides(sides, options, run, run_file, devices[: len(sides)])
    else:
        for side in sides:
            run_sides([side], options, run, run_file, devices[:1])
    records = records_of(run)
    print(table(records, options.level))
    asked = {(side, seed) for side in sides for seed in options.seeds}
    return 0 if asked <= {(record["side"], record["seed"]) for record in records if record["finished"]} else 1


if __name__ == "__main__":
    sys.exit(main())
