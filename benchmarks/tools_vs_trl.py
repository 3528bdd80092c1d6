"""Rollouts of several turns with a slow tool, TRL's GRPOTrainer and this project side by side, with the same environment class.

python benchmarks/tools_vs_trl.py --device cpu --shape nano     # a minute, to see that it runs
python benchmarks/tools_vs_trl.py --device cuda --shape 0.5b --seconds-per-side 420    # one GPU, vLLM colocated on both sides
python benchmarks/tools_vs_trl.py --device cuda --shape 0.5b --prompts-per-step 16     # as many as TRL ends in 5 minutes

Each side runs in a process of its own, one after the other. Every rollout has --turns turns, and a call of the tool between two
of them that takes --shortest-call to --longest-call seconds. In warm-up steps the tool answers at once. A side that is ended
before its first step that counts is over has taken *at least* the seconds until then: the ratio is one of "at least".
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import vs_trl
from sides.command import this_command
from sides.compare import ratios, summarize
from sides.tool_side import under_way
from sides.tool_workload import TOOL_WORKLOADS, ToolWorkload
from sides.workload import word_problems

PROGRAMS = ("trl", "grpo_lightning")
CHOSEN_BY_SHAPE = ("shape", "device", "model", "prompts", "engine_options")


def parse() -> tuple[argparse.Namespace, ToolWorkload]:
    """Command line; a field of ToolWorkload that is not given keeps the default of the shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=TOOL_WORKLOADS, default="tiny")
    parser.add_argument("--engine-options", type=json.loads, default={}, help="JSON: arguments of our generator")
    parser.add_argument("--seconds-per-side", type=float, help="end a run after it, and take what it came to")
    parser.add_argument("--only", choices=PROGRAMS, help="run one side and print what it needed")
    parser.add_argument("--reuse", action="store_true", help="take what --only left in --folder for the same workload")
    parser.add_argument("--folder", type=Path, default=vs_trl.ROOT / "runs" / "tools_vs_trl", help="model and records")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/tools_vs_trl_<shape>_<device>.json")
    for field in fields(ToolWorkload):
        if field.name not in CHOSEN_BY_SHAPE:
            kind = {"int": int, "float": float, "str": str, "bool": vs_trl._flag}[str(field.type)]
            parser.add_argument("--" + field.name.replace("_", "-"), type=kind, default=None)
    arguments = parser.parse_args()
    given = {field.name: getattr(arguments, field.name, None) for field in fields(ToolWorkload)}
    given["dtype"] = arguments.dtype or ("bfloat16" if arguments.device == "cuda" else "float32")
    changed = {name: value for name, value in given.items() if value is not None}
    return arguments, replace(TOOL_WORKLOADS[arguments.shape], **changed)


def prepare(workload: ToolWorkload, folder: Path) -> ToolWorkload:
    """Writes prompts and model, and says where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "prompts.jsonl"
    rows = word_problems(max(256, (workload.warmup_steps + workload.steps) * workload.prompts_per_step))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    workload = replace(workload, model=str(folder / "model"), prompts=str(prompts))
    workload.save(folder / "workload.json")
    made = ("sides.tool_side", "make", str(folder / "workload.json"), "")
    vs_trl._run(*made, device=workload.device, threads=workload.threads)
    return workload


def run_side(side: str, workload: ToolWorkload, folder: Path, seconds: float | None, reuse: bool) -> dict[str, Any]:
    """What a side needed, or in the seconds that it had came to."""
    record = vs_trl.start_side(side, workload, folder, seconds, ("sides.tool_side", side), reuse)
    steps = record["steps"][workload.warmup_steps :]
    if steps:
        return summarize(record, steps)
    cut_off = under_way(folder / f"{side}.json")
    if not cut_off.exists():
        raise SystemExit(f"{side} came to no generation that counts. Give it more time: --seconds-per-side.")
    come = json.loads(cut_off.read_text(encoding="utf-8"))
    return {"program": record["program"], "versions": record["versions"], "device": record["device"]} | at_least(
        come["generation_s"], come["calls"], workload
    )


def at_least(seconds: float, calls: int, workload: ToolWorkload) -> dict[str, Any]:
    """Of a generation that was ended before it was over.

    Args:
        seconds: It had taken.
        calls: Of the tool were over.
        workload: Says how many there are.
    """
    found = {"generation_s_at_least": round(seconds, 3), "calls": calls, "calls_of_a_step": workload.calls}
    return found | ({"generation_s_at_this_rate": round(seconds * workload.calls / calls, 1)} if calls else {})


def compared(trl: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """TRL's figures over ours; of what was ended before it was over, the least that it can be.

    Raises:
        SystemExit: If our side was ended: then nothing is known.
    """
    if "generation_s" not in ours:
        raise SystemExit("grpo_lightning was ended within its first step that counts. Give it more --seconds-per-side.")
    if "generation_s" in trl:
        return ratios(trl, ours)
    return {"generation_ratio_at_least": round(trl["generation_s_at_least"] / ours["generation_s"], 3)}


def show(results: dict[str, Any]) -> None:
    """Seconds, calls and tokens of each side, and the ratios."""
    for side in (results[name] for name in PROGRAMS if name in results):
        tokens = side.get("tokens", {})
        shown = {name: value for name, value in side.items() if name.startswith(("generation_s", "calls", "step_s"))}
        print(side["program"], json.dumps(shown | {name: tokens[name] for name in SHOWN_TOKENS if name in tokens}))
    print(json.dumps({name: value for name, value in results.items() if "ratio" in name}, indent=1))


SHOWN_TOKENS = ("completions", "mean_completion_length", "longest_completion")


def main() -> None:
    arguments, workload = parse()
    folder = arguments.folder / f"{workload.shape}_{workload.device}"
    workload = prepare(workload, folder)
    chosen = [arguments.only] if arguments.only else list(PROGRAMS)
    out = arguments.out or vs_trl.ROOT / "benchmarks/results" / f"tools_vs_trl_{workload.shape}_{workload.device}.json"
    results: dict[str, Any] = {
        "command": this_command("benchmarks/tools_vs_trl.py"),
        "shape": workload.shape,
        "cores": os.cpu_count(),
        "options": workload.options(),
    }
    for side in reversed(chosen):  # ours first: it takes less time to find out that something is wrong
        results[side] = run_side(side, workload, folder, arguments.seconds_per_side, arguments.reuse)
        if len(results.keys() & set(PROGRAMS)) == len(PROGRAMS):
            results |= compared(results["trl"], results["grpo_lightning"])
        if arguments.out or not arguments.only:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    show(results)


if __name__ == "__main__":
    main()
