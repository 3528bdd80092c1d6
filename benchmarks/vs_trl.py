"""TRL's GRPOTrainer and this project side by side: the same model, prompts, reward, lengths and sampling settings.

python benchmarks/vs_trl.py --device cpu --shape tiny     # writes benchmarks/results/vs_trl_tiny_cpu.json
python benchmarks/vs_trl.py --device cuda --shape 0.5b    # one GPU, vLLM colocated on both sides
python benchmarks/vs_trl.py --device cuda --shape 0.5b --torch-compile    # and ours with compiled layers

Each side runs in a process of its own, one after the other, --rounds times in turn. Ratios are TRL's figure over ours.
On a CPU that others use too, compare the ratios of process CPU seconds; wall times say more about the neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from sides import child
from sides.command import this_command
from sides.compare import ratios, summarize
from sides.made_model import is_made, made_of
from sides.whole_file import write_whole
from sides.workload import WORKLOADS, Workload, conversations, word_problems

ROOT = Path(__file__).resolve().parent.parent
CHOSEN_BY_SHAPE = ("shape", "device", "dtype", "model", "prompts", "engine_options")
BENCHMARK = "vs_trl"
SIDES = {"trl": ("sides.trl_side",), "grpo_lightning": ("sides.our_side",)}
"""Module and first arguments of the process of each side."""
COMPILED = {"grpo_lightning_compiled": ("sides.our_side", "--torch-compile")}


def parse(
    parser: argparse.ArgumentParser,
    workloads: Mapping[str, Workload],
    shape: str,
    sides: Collection[str] = tuple(SIDES),
) -> tuple[argparse.Namespace, Workload]:
    """Command line; a field of the workload that is not given keeps the default of the shape.

    Args:
        parser: With what this comparison alone has.
        workloads: By shape.
        shape: The default.
        sides: Of the comparison.
    """
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=workloads, default=shape)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "mixed"), help="default: bfloat16 on cuda")
    parser.add_argument(
        "--engine-options", type=json.loads, default={}, help="JSON: arguments of our generator, or settings of a peer"
    )
    parser.add_argument("--rounds", type=int, default=1, help="how often each side runs, in turn")
    parser.add_argument("--seconds-per-side", type=float, help="end a run after it, and take the steps that it came to")
    parser.add_argument("--only", choices=sides, help="run one side and print what it needed")
    parser.add_argument("--reuse", action="store_true", help="take what --only left in --folder for the same workload")
    parser.add_argument("--folder", type=Path, help="model, prompts and records; default: runs/<benchmark>")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<benchmark>_<shape>_<device>.json")
    found = fields(workloads[shape])
    for field in found:
        if field.name not in CHOSEN_BY_SHAPE:
            kind = {"int": int, "float": float, "bool": _flag}.get(str(field.type), str)
            parser.add_argument("--" + field.name.replace("_", "-"), type=kind, default=None)
    arguments = parser.parse_args()
    if arguments.reuse and arguments.rounds > 1:
        parser.error("--reuse is for one round: a second one would be the first one's record again.")
    given = {field.name: getattr(arguments, field.name, None) for field in found}
    given["dtype"] = arguments.dtype or ("bfloat16" if arguments.device == "cuda" else "float32")
    changed = {name: value for name, value in given.items() if value is not None}
    return arguments, replace(workloads[arguments.shape], **changed)


def _flag(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def prepare(workload: Workload, data: Path | None, folder: Path) -> Workload:
    """Writes the prompts and the model directory, and says where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts, model = folder / f"{workload.shape}.jsonl", folder / f"{workload.shape}-model"
    count = max(256, (workload.warmup_steps + workload.steps) * workload.prompts_per_step)
    rows = word_problems(count) if data is None else conversations(data.open(encoding="utf-8"), count)
    write_whole(prompts, "".join(json.dumps(row) + "\n" for row in rows))
    make(workload.shape, prompts, model, workload.mean_length, workload.device)
    return replace(workload, model=str(model), prompts=str(prompts))


def make(shape: str, text: Path, out: Path, mean_length: int, device: str, seed: int = 0) -> None:
    """A model directory, in a process of its own, which takes its time to begin; none where the directory is there."""
    if is_made(out, made_of(shape, text, mean_length, seed)):
        return
    options = {"shape": shape, "prompts": text, "out": out, "mean-length": mean_length, "seed": seed}
    _run("sides.make_model", *(f"--{name}={value}" for name, value in options.items()), device=device)


def run_side(
    side: str,
    workload: Any,
    folder: Path,
    seconds: float | None,
    command: tuple[str, ...],
    reuse: bool = False,
) -> dict[str, Any]:
    """The record of a run (see ``start_side``), which has steps that count."""
    found = start_side(side, workload, folder, seconds, command, reuse)
    if len(found["steps"]) <= workload.warmup_steps:
        raise SystemExit(f"{side} came to no step that counts. Give it more time: --seconds-per-side.")
    return found


def start_side(
    side: str,
    workload: Any,
    folder: Path,
    seconds: float | None,
    command: tuple[str, ...],
    reuse: bool = False,
) -> dict[str, Any]:
    """One run in its own process; returns its record, which after ``seconds`` has the steps that it came to.

    Args:
        side: Its name, which is the record's.
        workload: What to run, a ``Workload`` or another with ``save``, ``device``, ``threads`` and ``warmup_steps``.
        folder: For settings and record.
        seconds: After which it is ended; None for never.
        command: Module and first arguments of the process.
        reuse: Take the record of an earlier command, where it is of the same workload.
    """
    settings, record, of_record = folder / "workload.json", folder / f"{side}.json", folder / f"{side}.workload.json"
    workload.save(settings)
    if not (reuse and is_recorded(side, folder)):
        record.unlink(missing_ok=True)
        workload.save(of_record)
        try:
            limits: dict[str, Any] = {"device": workload.device, "threads": workload.threads, "seconds": seconds}
            _run(*command, str(settings), str(record), log=folder / f"{side}.log", **limits)
        except subprocess.TimeoutExpired:
            print(f"{side} was ended after {seconds:.0f} s.")
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {"steps": []}
    return found


def is_recorded(side: str, folder: Path) -> bool:
    """Whether the folder has a record of this side for its ``workload.json``."""
    settings, record, of_record = folder / "workload.json", folder / f"{side}.json", folder / f"{side}.workload.json"
    return record.exists() and of_record.exists() and of_record.read_bytes() == settings.read_bytes()


def _run(
    module: str,
    *arguments: str,
    device: str = "cpu",
    threads: int = 1,
    seconds: float | None = None,
    log: Path | None = None,
) -> None:
    """A Python module in a fresh process, its output shown if it fails; with ``log`` it is left there, also when cut off."""
    environment = child.environment(
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        OMP_WAIT_POLICY="PASSIVE",  # threads that spin make a shared machine measure its neighbours
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
    )
    if device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", module, *arguments]
    with log.open("w+", encoding="utf-8") if log else tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = child.start(command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        with child.ended([process]):
            process.wait(seconds)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{module} failed:\n{output.read()[-9000:]}")


def show(results: dict[str, Any]) -> None:
    """A table of the sides and their ratios."""
    names = [name for name, value in results.items() if isinstance(value, dict) and "phase_s" in value]
    sides = [results[name] for name in names]
    print(f"{'':34}" + "".join(f"{name.removeprefix('grpo_'):>20}" for name in names))
    for name, value in sides[0].items():
        if isinstance(value, float | int):
            print(f"{name:34}" + "".join(f"{side[name]:20,.3f}" for side in sides))
    for phase in sorted({name for side in sides for name in side["phase_s"]}):
        seconds = "".join(f"{side['phase_s'].get(phase, 0.0):20,.3f}" for side in sides)
        cpu = "".join(f"{side['phase_cpu_s'].get(phase, 0.0):20,.3f}" for side in sides)
        print(f"{phase + ' s, cpu s':34}{seconds}{cpu}")
    compiled = {
        f"{side}: {name}": value for side in COMPILED for name, value in results.get(f"{side}_ratios", {}).items()
    }
    for name, value in (results | compiled).items():
        if "ratio" in name and isinstance(value, float):
            print(f"{name.removeprefix('grpo_lightning_'):54}{value:20,.3f}")


def folder_of(arguments: argparse.Namespace, benchmark: str) -> Path:
    """Where model, prompts and records of a shape on a device are."""
    chosen: Path = arguments.folder or ROOT / "runs" / benchmark
    return chosen / f"{arguments.shape}_{arguments.device}"


def compare(
    benchmark: str, arguments: argparse.Namespace, workload: Workload, sides: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    """Runs both sides, or one, in turn; their summaries and ratios, as a result keeps them.

    Args:
        benchmark: Name of the script, without its ending.
        arguments: Of ``parse``.
        workload: What to run.
        sides: Module and first arguments of the process of each side.
    """
    folder = folder_of(arguments, benchmark)
    chosen = [arguments.only] if arguments.only else list(sides)
    records: dict[str, list[dict[str, Any]]] = {side: [] for side in chosen}
    started = time.perf_counter()
    for _ in range(arguments.rounds):
        for side in reversed(chosen):  # ours first: it takes less time to find out that something is wrong
            limits = (arguments.seconds_per_side, sides[side], arguments.reuse)
            records[side].append(run_side(side, workload, folder, *limits))
            print(f"{side}: {time.perf_counter() - started:.0f} s after the start", flush=True)
    summaries = {
        side: summarize(runs[-1], [step for run in runs for step in run["steps"][workload.warmup_steps :]])
        for side, runs in records.items()
    }
    results: dict[str, Any] = {
        "command": this_command(f"benchmarks/{benchmark}.py"),
        "shape": workload.shape,
        "device": summaries[chosen[0]]["device"],
        "cores": os.cpu_count(),
        "rounds": arguments.rounds,
        "options": workload.options(),
    }
    if not arguments.only:
        results |= ratios(summaries["trl"], summaries["grpo_lightning"])
        results |= {
            f"{side}_ratios": ratios(summaries["trl"], summaries[side]) for side in COMPILED if side in summaries
        }
    return results | summaries


def report(benchmark: str, arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    """Prints the results; writes those of both sides, and those of one where --out names a file."""
    show(results)
    name = f"{benchmark}_{arguments.shape}_{arguments.device}.json"
    out: Path = arguments.out or ROOT / "benchmarks" / "results" / name
    if arguments.out or not arguments.only:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="JSONL with a question or prompt; by default made up and discarded")
    parser.add_argument("--torch-compile", action="store_true", help="also ours with model.torch_compile")
    arguments, workload = parse(parser, WORKLOADS, "tiny", (*SIDES, *COMPILED))
    workload = prepare(workload, arguments.data, folder_of(arguments, BENCHMARK))
    is_compiled = arguments.torch_compile or arguments.only in COMPILED
    results = compare(BENCHMARK, arguments, workload, SIDES | COMPILED if is_compiled else SIDES)
    report(BENCHMARK, arguments, results | {"data": "given" if arguments.data else "made up"})


if __name__ == "__main__":
    main()
