"""TRL's GRPOTrainer and this project side by side: the same model, prompts, reward, lengths and sampling settings.

python benchmarks/vs_trl.py --device cpu --shape tiny     # writes benchmarks/results/vs_trl_tiny_cpu.json
python benchmarks/vs_trl.py --device cuda --shape 0.5b    # one GPU, vLLM colocated on both sides

Each side runs in a process of its own, one after the other, --rounds times in turn. Ratios are TRL's figure over ours.
On a CPU that others use too, compare the ratios of process CPU seconds; wall times say more about the neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from sides import child
from sides.command import this_command
from sides.compare import ratios, summarize
from sides.workload import WORKLOADS, Workload, conversations, word_problems

ROOT = Path(__file__).resolve().parent.parent
CHOSEN_BY_SHAPE = ("shape", "device", "dtype", "model", "prompts", "engine_options")
SIDES = {"trl": "sides.trl_side", "grpo_lightning": "sides.our_side"}


def parse() -> tuple[argparse.Namespace, Workload]:
    """Command line; a field of Workload that is not given keeps the default of the shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=WORKLOADS, default="tiny")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "mixed"), help="default: bfloat16 on cuda")
    parser.add_argument("--data", type=Path, help="JSONL with a question or prompt; by default made up and discarded")
    parser.add_argument("--engine-options", type=json.loads, default={}, help="JSON: arguments of our generator")
    parser.add_argument("--rounds", type=int, default=1, help="how often each side runs, in turn")
    parser.add_argument("--seconds-per-side", type=float, help="end a run after it, and take the steps that it came to")
    parser.add_argument("--only", choices=SIDES, help="run one side and print what it needed")
    parser.add_argument("--reuse", action="store_true", help="take what --only left in --folder for the same workload")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "vs_trl", help="model, prompts and records")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/vs_trl_<shape>_<device>.json")
    for field in fields(Workload):
        if field.name not in CHOSEN_BY_SHAPE:
            kind = {"int": int, "float": float, "str": str, "bool": _flag}[str(field.type)]
            parser.add_argument("--" + field.name.replace("_", "-"), type=kind, default=None)
    arguments = parser.parse_args()
    if arguments.reuse and arguments.rounds > 1:
        parser.error("--reuse is for one round: a second one would be the first one's record again.")
    given = {field.name: getattr(arguments, field.name, None) for field in fields(Workload)}
    given["dtype"] = arguments.dtype or ("bfloat16" if arguments.device == "cuda" else "float32")
    changed = {name: value for name, value in given.items() if value is not None}
    return arguments, replace(WORKLOADS[arguments.shape], **changed)


def _flag(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def prepare(workload: Workload, data: Path | None, folder: Path) -> Workload:
    """Writes the prompts and the model directory, and says where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts, model = folder / f"{workload.shape}.jsonl", folder / f"{workload.shape}-model"
    count = max(256, (workload.warmup_steps + workload.steps) * workload.prompts_per_step)
    rows = word_problems(count) if data is None else conversations(data.open(encoding="utf-8"), count)
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {"shape": workload.shape, "prompts": prompts, "out": model, "mean-length": workload.mean_length}
    _run("sides.make_model", *(f"--{name}={value}" for name, value in options.items()), device=workload.device)
    return replace(workload, model=str(model), prompts=str(prompts))


def run_side(
    side: str,
    workload: Workload,
    folder: Path,
    seconds: float | None,
    command: tuple[str, ...] = (),
    reuse: bool = False,
) -> dict[str, Any]:
    """The record of a run (see ``start_side``), which has steps that count."""
    found = start_side(side, workload, folder, seconds, command, reuse)
    if len(found["steps"]) <= workload.warmup_steps:
        raise SystemExit(f"{side} came to no step that counts. Give it more time: --seconds-per-side.")
    return found


def start_side(
    side: str,
    workload: Workload,
    folder: Path,
    seconds: float | None,
    command: tuple[str, ...] = (),
    reuse: bool = False,
) -> dict[str, Any]:
    """One run in its own process; returns its record, which after ``seconds`` has the steps that it came to.

    Args:
        side: A key of SIDES.
        workload: What to run.
        folder: For settings and record.
        seconds: After which it is ended; None for never.
        command: Module and first arguments of the process, in place of the side's own module.
        reuse: Take the record of an earlier command, where it is of the same workload.
    """
    settings, record, of_record = folder / "workload.json", folder / f"{side}.json", folder / f"{side}.workload.json"
    workload.save(settings)
    is_there = record.exists() and of_record.exists() and of_record.read_bytes() == settings.read_bytes()
    if not (reuse and is_there):
        record.unlink(missing_ok=True)
        workload.save(of_record)
        try:
            limits: dict[str, Any] = {"device": workload.device, "threads": workload.threads, "seconds": seconds}
            _run(*(command or (SIDES[side],)), str(settings), str(record), **limits)
        except subprocess.TimeoutExpired:
            print(f"{side} was ended after {seconds:.0f} s.")
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {"steps": []}
    return found


def _run(module: str, *arguments: str, device: str = "cpu", threads: int = 1, seconds: float | None = None) -> None:
    """A Python module in a fresh process, its output shown if it fails."""
    environment = child.environment(
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        OMP_WAIT_POLICY="PASSIVE",  # threads that spin make a shared machine measure its neighbours
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
    )
    if device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", module, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = child.start(command, env=environment, cwd=ROOT, **pipes)
    with child.ended([process]):
        output, _ = process.communicate(timeout=seconds)
    if process.returncode:
        raise SystemExit(f"{module} failed:\n{output[-9000:]}")


def show(results: dict[str, Any]) -> None:
    """A table of both sides and their ratios."""
    sides = [results[side] for side in SIDES if side in results]
    print(f"{'':34}" + "".join(f"{side['program']:>16}" for side in sides))
    for name, value in sides[0].items():
        if isinstance(value, float | int):
            print(f"{name:34}" + "".join(f"{side[name]:16,.3f}" for side in sides))
    for phase in sorted({name for side in sides for name in side["phase_s"]}):
        seconds = "".join(f"{side['phase_s'].get(phase, 0.0):16,.3f}" for side in sides)
        cpu = "".join(f"{side['phase_cpu_s'].get(phase, 0.0):16,.3f}" for side in sides)
        print(f"{phase + ' s, cpu s':34}{seconds}{cpu}")
    for name, value in results.items():
        if "ratio" in name:
            print(f"{name:34}{value:16,.3f}")


def main() -> None:
    arguments, workload = parse()
    folder = arguments.folder / f"{workload.shape}_{workload.device}"
    workload = prepare(workload, arguments.data, folder)
    chosen = [arguments.only] if arguments.only else list(SIDES)
    records: dict[str, list[dict[str, Any]]] = {side: [] for side in chosen}
    started = time.perf_counter()
    for _ in range(arguments.rounds):
        for side in reversed(chosen):  # ours first: it takes less time to find out that something is wrong
            records[side].append(run_side(side, workload, folder, arguments.seconds_per_side, (), arguments.reuse))
            print(f"{side}: {time.perf_counter() - started:.0f} s after the start", flush=True)
    summaries = {
        side: summarize(runs[-1], [step for run in runs for step in run["steps"][workload.warmup_steps :]])
        for side, runs in records.items()
    }
    results: dict[str, Any] = {
        "command": this_command("benchmarks/vs_trl.py"),
        "shape": workload.shape,
        "device": summaries[chosen[0]]["device"],
        "cores": os.cpu_count(),
        "data": "given" if arguments.data else "made up",
        "rounds": arguments.rounds,
        "options": workload.options(),
    }
    if not arguments.only:
        results |= ratios(summaries["trl"], summaries["grpo_lightning"])
    results |= summaries
    show(results)
    out = arguments.out or ROOT / "benchmarks" / "results" / f"vs_trl_{workload.shape}_{workload.device}.json"
    if arguments.out or not arguments.only:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
