"""What partial rollouts save: steps that carry their longest completions over, against steps that wait for them.

python benchmarks/partial_rollouts.py --device cuda --shape 0.5b     # one GPU, vLLM in the trainer's process
python benchmarks/partial_rollouts.py --shape nano                   # a CPU, minutes, to see that it runs

The workload is that of vs_trl.py: completions of geometric length. The learning rate is 0, so all runs sample the same policy and
differ in when completions are sampled alone. Figures are of the steps after --warmup-steps, in which the share of
carried completions settles: completions and tokens that were trained on, over the seconds of all steps.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from sides import child
from sides.command import this_command
from sides.logged_steps import logged_steps
from sides.make_model import make_model
from sides.record import versions
from sides.workload import WORKLOADS, Workload, word_problems

ROOT = Path(__file__).resolve().parents[1]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=WORKLOADS, default="nano")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--carry-over", type=float, nargs="+", default=[0.5], help="shares that are compared with 0")
    parser.add_argument("--max-staleness", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8, help="that count, after --warmup-steps")
    parser.add_argument("--warmup-steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each kind, in turn")
    parser.add_argument("--precision", help="of the Trainer; bf16-mixed on cuda, 32-true on a CPU")
    parser.add_argument("--prompts-per-step", type=int, help="in place of the shape's")
    parser.add_argument("--max-completion-length", type=int, help="in place of the shape's")
    parser.add_argument("--mean-length", type=int, help="of completions, in place of the shape's")
    parser.add_argument("--max-tokens-per-microbatch", type=int, help="by default the shape's")
    parser.add_argument("--generator", choices=("vllm", "transformers"), help="vllm on cuda, transformers on a CPU")
    parser.add_argument("--engine-options", type=json.loads, default={}, help="JSON: further arguments of VLLMColocate")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "partial_rollouts")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/partial_rollouts_<shape>_<device>.json")
    return parser.parse_args()


def workload_of(options: argparse.Namespace) -> Workload:
    names = ("prompts_per_step", "max_completion_length", "mean_length", "max_tokens_per_microbatch")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return replace(WORKLOADS[options.shape], **given)


def generator(options: argparse.Namespace, workload: Workload) -> dict[str, Any]:
    on_gpu = options.device == "cuda"
    if (options.generator or ("vllm" if on_gpu else "transformers")) == "transformers":
        return {"class_path": "grpo_lightning.generation.TransformersGenerator"}
    arguments: dict[str, Any] = {"max_model_length": workload.max_completion_length + (1024 if on_gpu else 256)}
    small = {"enforce_eager": True, "kv_cache_memory_gb": 0.25}
    arguments |= {"gpu_memory_utilization": workload.gpu_memory_utilization} if on_gpu else small
    return {"class_path": "grpo_lightning.generation.VLLMColocate", "init_args": arguments | options.engine_options}


def config_of(
    options: argparse.Namespace, workload: Workload, carry_over: float, run: Path, model: Path, prompts: Path
) -> dict[str, Any]:
    """A run of the command line."""
    on_gpu = options.device == "cuda"
    return {
        "trainer": {
            "default_root_dir": str(run),
            "accelerator": "gpu" if on_gpu else "cpu",
            "devices": 1,
            "precision": options.precision or ("bf16-mixed" if on_gpu else "32-true"),
            "max_steps": options.warmup_steps + options.steps,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
        },
        "model": {
            "model_name_or_path": str(model),
            "rewards": ["sides.workload.even_fraction"],
            "generator": generator(options, workload),
            "num_generations": workload.num_generations,
            "max_completion_length": workload.max_completion_length,
            "max_tokens_per_microbatch": workload.max_tokens_per_microbatch,
            "partial_rollouts": {"carry_over": carry_over, "max_staleness": options.max_staleness},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.0, "weight_decay": 0.0}},
        },
        "data": {"dataset": str(prompts), "batch_size": workload.prompts_per_step, "shuffle": False},
        "checkpoint": {"save_top_k": 0, "save_last": False},
    }


def train(
    options: argparse.Namespace, workload: Workload, carry_over: float, model: Path, prompts: Path
) -> list[dict[str, str]]:
    """The logged rows of one run's steps that count."""
    run = options.folder / f"carry_over_{carry_over}"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    config = run / "config.yaml"
    config.write_text(yaml.safe_dump(config_of(options, workload, carry_over, run, model, prompts)))
    environment = child.environment(VLLM_NO_USAGE_STATS="1")
    if options.device == "cpu":
        environment |= {"TORCH_COMPILE_DISABLE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    if child.run([sys.executable, "-m", "grpo_lightning", "fit", "--config", str(config)], env=environment):
        raise SystemExit(f"The run with carry_over={carry_over} failed.")
    return logged_steps(run)[options.warmup_steps :]


def figures(rows: list[dict[str, str]], completions_per_step: int) -> dict[str, Any]:
    """Rates over all steps, and medians of what each logged.

    Args:
        rows: Of the steps that count; each trains on as many completions.
        completions_per_step: How many.
    """

    def all_of(name: str) -> list[float]:
        return [float(row[name]) for row in rows if row.get(name)]

    seconds = sum(all_of("step_time"))
    tokens = sum(rate * time for rate, time in zip(all_of("tokens_per_second"), all_of("step_time"), strict=True))
    names = [name for name in rows[0] if name.startswith(("time/", "sampling/age/")) and all_of(name)]
    return {
        "steps": len(rows),
        "step_seconds": round(median(all_of("step_time")), 4),
        "completions_per_second": round(completions_per_step * len(rows) / seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1),
        "mean_length": round(tokens / (completions_per_step * len(rows)), 1),
        **{name: round(median(all_of(name)), 4) for name in sorted(names)},
    }


def main() -> None:
    options = parse()
    workload = workload_of(options)
    options.folder.mkdir(parents=True, exist_ok=True)
    prompts, model = options.folder / "prompts.jsonl", options.folder / f"model_{options.shape}"
    count = workload.prompts_per_step * (options.warmup_steps + options.steps)
    prompts.write_text("".join(json.dumps(row) + "\n" for row in word_problems(count)))
    make_model(options.shape, prompts, model, workload.mean_length)
    kinds = [0.0, *options.carry_over]
    rows: dict[float, list[dict[str, str]]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind in kinds:
            rows[kind] += train(options, workload, kind, model, prompts)
            result = write(options, workload, rows)  # now: the next run may be cut off
    print(json.dumps({name: result[name] for name in ("ratios_to_carry_over_0", "runs")}, indent=1))


def write(options: argparse.Namespace, workload: Workload, rows: dict[float, list[dict[str, str]]]) -> dict[str, Any]:
    """The result of the runs so far."""
    per_step = workload.prompts_per_step * workload.num_generations
    runs = {f"carry_over={kind}": figures(of_kind, per_step) for kind, of_kind in rows.items() if of_kind}
    waits = runs["carry_over=0.0"]
    ratios = {
        name: {rate: round(run[rate] / waits[rate], 3) for rate in ("completions_per_second", "tokens_per_second")}
        for name, run in runs.items()
        if run is not waits
    }
    result = {
        "command": this_command("benchmarks/partial_rollouts.py"),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "workload": workload.options(),
        "versions": versions(),
        "ratios_to_carry_over_0": ratios,
        "runs": runs,
    }
    out = options.out or ROOT / "benchmarks" / "results" / f"partial_rollouts_{options.shape}_{options.device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
