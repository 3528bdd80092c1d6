"""LoRA and QLoRA steps, side by side with TRL's on the same workload.

python benchmarks/lora.py --device cpu --shape nano --type lora        # a minute, to see that it runs
python benchmarks/lora.py --device cuda --shape 0.5b --type lora       # one GPU, vLLM colocated on both sides
python benchmarks/lora.py --device cuda --shape 1.5b --type qlora
python benchmarks/lora.py --device cuda --shape 7b --type qlora        # random weights, one GPU

Phases, medians and ratios are those of ``vs_trl.py``. ``weight_sync`` in ``phase_s`` is the time in which the adapter
reaches the engine: ``--engine-options '{"lora_sync": "hot"}'`` and ``'{"lora_sync": "merge"}'`` compare the two ways.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import vs_trl
from sides.command import this_command
from sides.compare import ratios, summarize
from sides.workload import LARGE, WORKLOADS, Workload, word_problems

SHAPES = WORKLOADS | {
    "7b": replace(LARGE, shape="7b", prompts_per_step=16, per_device_batch=4, max_tokens_per_microbatch=4096)
}
PROGRAMS = ("trl", "grpo_lightning")


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--type", choices=("lora", "qlora"), default="lora")
    parser.add_argument("--rank", type=int, default=16, help="alpha is twice as much")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--steps", type=int, help="optimizer steps that count")
    parser.add_argument("--warmup-steps", type=int, help="optimizer steps before them")
    parser.add_argument("--max-tokens-per-microbatch", type=int, help="of ours, in one forward and backward pass")
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.3, help="share of the engine, both sides")
    parser.add_argument("--engine-options", type=json.loads, default={}, help="JSON: arguments of our generator")
    parser.add_argument("--seconds-per-side", type=float, help="end a run after it, and take the steps that it came to")
    parser.add_argument("--only", choices=PROGRAMS, help="run one side")
    parser.add_argument("--reuse", action="store_true", help="take what --only left in --folder for the same workload")
    parser.add_argument("--folder", type=Path, default=vs_trl.ROOT / "runs" / "lora_benchmark")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<type>_<shape>_<device>.json")
    return parser.parse_args()


def prepare(options: argparse.Namespace, folder: Path) -> Workload:
    """Writes prompts, adapter settings and model, and says what to run."""
    folder.mkdir(parents=True, exist_ok=True)
    workload = replace(
        SHAPES[options.shape],
        device=options.device,
        dtype="bfloat16" if options.device == "cuda" else "float32",
        learning_rate=1e-5,
        gpu_memory_utilization=options.gpu_memory_utilization,
        engine_options=options.engine_options,
        model=str(folder / "model"),
        prompts=str(folder / "prompts.jsonl"),
    )
    counts = {name: getattr(options, name) for name in ("steps", "warmup_steps", "max_tokens_per_microbatch")}
    workload = replace(workload, **{name: count for name, count in counts.items() if count is not None})
    rows = word_problems(max(256, (workload.warmup_steps + workload.steps) * workload.prompts_per_step))
    Path(workload.prompts).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    adapter: dict[str, Any] = {"finetuning_type": options.type, "lora_rank": options.rank}
    adapter |= {"lora_alpha": 2 * options.rank, "lora_dropout": options.dropout}
    (folder / "adapter.json").write_text(json.dumps(adapter), encoding="utf-8")
    workload.save(folder / "workload.json")
    made = ("sides.lora_side", "make", str(folder / "workload.json"), "")
    vs_trl._run(*made, device=workload.device, threads=workload.threads)
    return workload


def main() -> None:
    options = parse()
    folder = options.folder / f"{options.type}_{options.rank}_{options.shape}_{options.device}"
    workload = prepare(options, folder)
    chosen = [options.only] if options.only else list(PROGRAMS)
    seconds = options.seconds_per_side
    records = {
        side: vs_trl.run_side(side, workload, folder, seconds, ("sides.lora_side", side), options.reuse)
        for side in reversed(chosen)
    }
    summaries = {side: summarize(r, r["steps"][workload.warmup_steps :]) for side, r in records.items()}
    results: dict[str, Any] = {
        "command": this_command("benchmarks/lora.py"),
        "finetuning_type": options.type,
        "lora_rank": options.rank,
        "lora_dropout": options.dropout,
        "shape": workload.shape,
        "device": summaries[chosen[0]]["device"],
        "cores": os.cpu_count(),
        "options": workload.options(),
    }
    if not options.only:
        results |= ratios(summaries["trl"], summaries["grpo_lightning"])
    results |= {f"{side}_sync_s": summary["phase_s"].get("weight_sync", 0.0) for side, summary in summaries.items()}
    results |= summaries
    vs_trl.show(results)
    out = (
        options.out or vs_trl.ROOT / "benchmarks" / "results" / f"{options.type}_{options.shape}_{options.device}.json"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
