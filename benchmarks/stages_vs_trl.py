"""Stages of TRL 1.16 and of this project side by side: the same model, data, batch, loss, optimizer and precision.

python benchmarks/stages_vs_trl.py --device cpu --shape nano                        # seconds, to see that it runs
python benchmarks/stages_vs_trl.py --device cuda --shape 0.5b                       # DPO; writes benchmarks/results/dpo_0.5b_cuda.json
python benchmarks/stages_vs_trl.py --device cuda --shape 0.5b --stage distillation  # from a teacher of 1.5b

On a GPU weights are float32, computed with in bfloat16 (--dtype mixed). DPO is full training with a reference in memory;
distillation is on-policy, sampling with vLLM in the training process. TRL computes activations again in the backward pass unless
told otherwise, we do not; therefore sides run both ways, each in a process of its own, one after the other. Tokens are those of all
completions, each with its prompt, without padding. Rates are of whole steps; training rates leave sampling out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import vs_trl
from sides.command import this_command
from sides.distillation_workload import DISTILLATION_WORKLOADS, DistillationWorkload
from sides.pair_workload import PAIR_WORKLOADS, PairWorkload
from sides.stage_summary import ratios, summarize
from sides.ways import SIDES
from sides.whole_file import write_whole
from sides.workload import WORKLOADS, word_problems

CHOSEN_BY_SHAPE = ("shape", "device", "dtype", "model", "teacher", "pairs", "prompts", "engine_options", "attention")
TEXTS = 256
"""Word problems that tokenizers are trained on: the same for all stages, so that these share their models."""


def prepare_dpo(workload: PairWorkload, folder: Path, models: Path) -> PairWorkload:
    """Writes pairs and model, and says where they are."""
    pairs = folder / "pairs.jsonl"
    write_whole(pairs, "".join(json.dumps(row) + "\n" for row in workload.rows()))
    model = make_model(workload.shape, WORKLOADS[workload.shape].mean_length, models, workload.device)
    return replace(workload, model=model, pairs=str(pairs))


def prepare_distillation(workload: DistillationWorkload, folder: Path, models: Path) -> DistillationWorkload:
    """Writes prompts and both models, and says where they are."""
    prompts = folder / "prompts.jsonl"
    rows = word_problems((workload.warmup_steps + workload.steps) * workload.prompts_per_step)
    write_whole(prompts, "".join(json.dumps(row) + "\n" for row in rows))
    model = make_model(workload.shape, workload.mean_length, models, workload.device)
    seed = int(workload.teacher_shape == workload.shape)  # a teacher that has something to teach
    teacher = make_model(workload.teacher_shape, workload.mean_length, models, workload.device, seed)
    return replace(workload, model=model, teacher=teacher, prompts=str(prompts))


def make_model(shape: str, mean_length: int, models: Path, device: str, seed: int = 0) -> str:
    """A model directory, which stages share."""
    models.mkdir(parents=True, exist_ok=True)
    text, out = models / "text.jsonl", models / f"{shape}-{mean_length}-{seed}"
    write_whole(text, "".join(json.dumps(row) + "\n" for row in word_problems(TEXTS)))
    vs_trl.make(shape, text, out, mean_length, device, seed)
    return str(out)


@dataclass(frozen=True)
class Stage:
    """What is compared."""

    workloads: dict[str, Any]
    """By shape."""
    prepare: Callable[[Any, Path, Path], Any]
    module: str
    """Of a side's process."""


STAGES = {
    "dpo": Stage(PAIR_WORKLOADS, prepare_dpo, "sides.dpo_side"),
    "distillation": Stage(DISTILLATION_WORKLOADS, prepare_distillation, "sides.distillation_side"),
}


def parse() -> tuple[argparse.Namespace, Any]:
    """Command line; a field of the stage's workload that is not given keeps the default of the shape."""
    stage = argparse.ArgumentParser(add_help=False)
    stage.add_argument("--stage", choices=STAGES, default="dpo")
    workloads = STAGES[stage.parse_known_args()[0].stage].workloads
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[stage]
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=workloads, default="tiny")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "mixed"), help="default: mixed on cuda")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="some of them; by default all")
    parser.add_argument(
        "--only", nargs="*", choices=SIDES, help="run these and leave their records; none: models and data alone"
    )
    parser.add_argument("--seconds-per-side", type=float, help="end a run after it, and take the steps that it came to")
    parser.add_argument("--reuse", action="store_true", help="take what --folder has for the same workload")
    parser.add_argument("--recorded", action="store_true", help="run nothing, and take the sides that --folder has")
    parser.add_argument(
        "--folder", type=Path, default=vs_trl.ROOT / "runs" / "stages_vs_trl", help="models and records"
    )
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<stage>_<shape>_<device>.json")
    kinds = {"int": int, "float": float, "str": str, "bool": bool}
    for field in fields(next(iter(workloads.values()))):
        if field.name not in CHOSEN_BY_SHAPE:
            parser.add_argument("--" + field.name.replace("_", "-"), type=kinds[str(field.type)], default=None)
    arguments = parser.parse_args()
    given = {field.name: getattr(arguments, field.name, None) for field in fields(workloads[arguments.shape])}
    given["dtype"] = arguments.dtype or ("mixed" if arguments.device == "cuda" else "float32")
    workload = replace(workloads[arguments.shape], **{k: value for k, value in given.items() if value is not None})
    batch = (
        workload.pairs_per_step if arguments.stage == "dpo" else workload.prompts_per_step * workload.num_generations
    )
    if batch % workload.per_device_batch:
        parser.error(f"--per-device-batch {workload.per_device_batch} does not divide the {batch} examples of a step.")
    return arguments, workload


def run_sides(
    arguments: argparse.Namespace, workload: Any, folder: Path, save: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """What each side needed, saved after each; a side that comes to nothing is left out, with a line."""
    sides: dict[str, Any] = {}
    command = STAGES[arguments.stage].module
    for side in arguments.sides if arguments.only is None else arguments.only:
        try:
            record = vs_trl.run_side(
                side, workload, folder, arguments.seconds_per_side, (command, side), arguments.reuse
            )
        except SystemExit as error:
            print(f"{side}: {error}", flush=True)
            continue
        sides[side] = summarize(record, workload.warmup_steps)
        names = ("tokens_per_s", "training_tokens_per_s", "tokens_per_cpu_s", "step_s", "peak_bytes", "slow_ways")
        print(side, json.dumps({name: sides[side][name] for name in names}), flush=True)
        save(sides)
    return sides


def main() -> int:
    """Returns 1 if a side came to nothing."""
    arguments, workload = parse()
    folder = arguments.folder / f"{arguments.stage}_{workload.shape}_{workload.device}"
    folder.mkdir(parents=True, exist_ok=True)
    workload = STAGES[arguments.stage].prepare(workload, folder, arguments.folder / "models")
    if arguments.recorded:
        workload.save(folder / "workload.json")
        arguments.reuse, arguments.sides = True, [side for side in arguments.sides if vs_trl.is_recorded(side, folder)]
    name = f"{arguments.stage}_{workload.shape}_{workload.device}.json"
    out = arguments.out or vs_trl.ROOT / "benchmarks" / "results" / name

    def save(sides: dict[str, Any]) -> None:
        if arguments.only is not None:
            return
        results = {
            "command": this_command("benchmarks/stages_vs_trl.py"),
            "stage": arguments.stage,
            "shape": workload.shape,
            "device": next(iter(sides.values()))["device"],
            "cores": os.cpu_count(),
            "options": workload.options(),
            "ratios": ratios(sides),
            "sides": sides,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, json.dumps(results, indent=1) + "\n")

    sides = run_sides(arguments, workload, folder, save)
    print(json.dumps(ratios(sides), indent=1))
    return int(len(sides) < len(arguments.sides if arguments.only is None else arguments.only))


if __name__ == "__main__":
    sys.exit(main())
