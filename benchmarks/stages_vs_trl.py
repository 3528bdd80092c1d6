"""DPO of TRL 1.16 and of this project side by side: the same model, pairs, batch, loss, optimizer and precision.

python benchmarks/stages_vs_trl.py --device cpu --shape nano     # seconds, to see that it runs
python benchmarks/stages_vs_trl.py --device cuda --shape 0.5b    # one GPU; writes benchmarks/results/dpo_0.5b_cuda.json

Full training with a reference in memory, float32 weights, on a GPU computed in bfloat16. TRL computes activations again in
the backward pass unless told otherwise, we do not; therefore each side runs both ways, in a process of its own, one after the
other. Tokens are those of both completions, each with its prompt, without padding. Rates are of whole steps.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import vs_trl
from sides.command import this_command
from sides.pair_workload import PAIR_WORKLOADS, PairWorkload

SIDES = ("trl", "trl_no_checkpointing", "ours", "ours_checkpointing")
CHOSEN_BY_SHAPE = ("shape", "device", "model", "pairs")


def parse() -> tuple[argparse.Namespace, PairWorkload]:
    """Command line; a field of PairWorkload that is not given keeps the default of the shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=PAIR_WORKLOADS, default="tiny")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="some of them; by default all")
    parser.add_argument("--seconds-per-side", type=float, help="end a run after it, and take the steps that it came to")
    parser.add_argument("--reuse", action="store_true", help="take what --folder has for the same workload")
    parser.add_argument("--folder", type=Path, default=vs_trl.ROOT / "runs" / "stages_vs_trl", help="model and records")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/dpo_<shape>_<device>.json")
    for field in fields(PairWorkload):
        if field.name not in CHOSEN_BY_SHAPE:
            kind = {"int": int, "float": float}[str(field.type)]
            parser.add_argument("--" + field.name.replace("_", "-"), type=kind, default=None)
    arguments = parser.parse_args()
    given = {field.name: getattr(arguments, field.name, None) for field in fields(PairWorkload)}
    workload = replace(
        PAIR_WORKLOADS[arguments.shape], **{name: value for name, value in given.items() if value is not None}
    )
    if workload.pairs_per_step % workload.per_device_batch:
        parser.error(
            f"--per-device-batch {workload.per_device_batch} does not divide --pairs-per-step {workload.pairs_per_step}."
        )
    return arguments, workload


def prepare(workload: PairWorkload, folder: Path) -> PairWorkload:
    """Writes pairs and model, and says where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs, text, model = folder / "pairs.jsonl", folder / "text.jsonl", folder / "model"
    rows = workload.rows()
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    contents = [{"prompt": [{"content": part} for part in row.values()]} for row in rows]
    text.write_text("".join(json.dumps(row) + "\n" for row in contents), encoding="utf-8")
    options = {"shape": workload.shape, "prompts": text, "out": model, "mean-length": 0}
    vs_trl._run("sides.make_model", *(f"--{name}={value}" for name, value in options.items()), device=workload.device)
    return replace(workload, model=str(model), pairs=str(pairs))


def summarize(record: dict[str, Any], warmup_steps: int) -> dict[str, Any]:
    """What one side needed: rates over the steps that count, in tokens a second; peaks in bytes.

    ``tokens_per_cpu_s`` is per second of the process on processors, which is what to read on a shared CPU.
    """
    steps = record["steps"][warmup_steps:]
    useful = sum(step["counts"]["useful_tokens"] for step in steps)
    seconds, cpu = ([sum(step[kind].values()) for step in steps] for kind in ("wall_s", "cpu_s"))
    return {
        "program": record["program"],
        "tokens_per_s": round(useful / sum(seconds), 1),
        "tokens_per_cpu_s": round(useful / sum(cpu), 1),
        "step_s": round(median(seconds), 4),
        "step_s_range": [round(min(seconds), 4), round(max(seconds), 4)],
        "steps": len(steps),
        "tokens_per_step": round(useful / len(steps), 1),
        "positions_per_useful_token": round(sum(step["counts"]["positions"] for step in steps) / useful, 4),
        "peak_bytes": max(max(step["peak_bytes"].values()) for step in steps),
        "bytes_before_training": record["bytes_before_training"],
        "losses": [step["notes"].get("loss") for step in record["steps"]],
        "parameters": record["parameters"],
        "device": record["device"],
        "versions": record["versions"],
    }


def ratios(sides: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Of each of our ways against each of TRL's: above 1, ours is faster, or needs less memory."""
    found = {}
    for mine in (name for name in sides if name.startswith("ours")):
        for theirs in (name for name in sides if name.startswith("trl")):
            for rate in ("tokens_per_s", "tokens_per_cpu_s"):
                found[f"{rate}: {mine} / {theirs}"] = round(sides[mine][rate] / sides[theirs][rate], 3)
            found[f"peak_bytes: {theirs} / {mine}"] = round(sides[theirs]["peak_bytes"] / sides[mine]["peak_bytes"], 3)
    return found


def main() -> None:
    arguments, workload = parse()
    folder = arguments.folder / f"{workload.shape}_{workload.device}"
    workload = prepare(workload, folder)
    sides = {}
    for side in arguments.sides:
        command, seconds = ("sides.dpo_side", side), arguments.seconds_per_side
        record = vs_trl.run_side(side, workload, folder, seconds, command, arguments.reuse)
        sides[side] = summarize(record, workload.warmup_steps)
        shown = {name: sides[side][name] for name in ("tokens_per_s", "tokens_per_cpu_s", "step_s", "peak_bytes")}
        print(side, json.dumps(shown), flush=True)
    results = {
        "command": this_command("benchmarks/stages_vs_trl.py"),
        "shape": workload.shape,
        "device": sides[arguments.sides[0]]["device"],
        "cores": os.cpu_count(),
        "options": workload.options(),
        "ratios": ratios(sides),
        "sides": sides,
    }
    print(json.dumps(results["ratios"], indent=1))
    out = arguments.out or vs_trl.ROOT / "benchmarks" / "results" / f"dpo_{workload.shape}_{workload.device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
