"""What sampling a step ahead saves: a vLLM server on a GPU of its own, model.async_rollouts=1 against 0.

python benchmarks/async_rollouts.py --shape 0.5b --compare colocate    # 2 GPUs: trainer on 0, server on 1
python benchmarks/async_rollouts.py --shape nano --device cpu          # minutes, to see that it runs

The learning rate is 0, so all runs with a server sample the same tokens (``same_tokens``). ``--compare colocate`` adds
synchronous steps with VLLMColocate on as many GPUs in all and the same prompts a step, split over them by DDP; its tokens
are drawn with other seeds, so compare tokens a second. Medians over the steps after the warm-up but the last, during
which no next batch is sampled. On a CPU trainer and server share the cores, and there is little to gain.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from sides import child
from sides.command import this_command
from sides.logged_steps import logged_steps
from sides.make_model import make_model
from sides.ports import free_port
from sides.record import versions
from sides.workload import word_problems

ROOT = Path(__file__).resolve().parents[1]
SIZES = {  # prompts a step, completions per prompt, their limit and mean length in tokens
    "nano": (4, 4, 32, 16),
    "tiny": (8, 8, 128, 60),
    "0.5b": (64, 8, 1024, 220),
    "1.5b": (64, 8, 1024, 220),
}
SMALL_SERVER = ["--enforce-eager", "--kv-cache-memory-bytes", str(256 * 2**20)]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SIZES, default="0.5b")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--compare", choices=("server", "colocate"), default="server", help="with what else")
    parser.add_argument("--trainer-gpus", type=int, default=1, help="GPUs 0, 1, ... train")
    parser.add_argument("--server-gpus", default="1", help="the server's, such as 1 or 2,3")
    parser.add_argument("--colocate-gpus", type=int, help="by default those of trainer and server together")
    parser.add_argument("--steps", type=int, default=6, help="that count, after --warmup-steps")
    parser.add_argument("--warmup-steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each kind, in turn")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--max-tokens-per-microbatch", type=int, default=16384)
    parser.add_argument("--colocate-options", default="{}", help="JSON: further arguments of VLLMColocate")
    parser.add_argument("--server-options", default="{}", help="JSON: further arguments of VLLMServer")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "async_rollouts")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/async_rollouts_<shape>_<device>.json")
    return parser.parse_args()


def generator(options: argparse.Namespace, kind: str) -> dict[str, Any]:
    limit = SIZES[options.shape][2]
    on_gpu = options.device == "cuda"
    arguments: dict[str, Any] = {"max_model_length": limit + (1024 if on_gpu else 256)}
    if kind == "colocate":
        arguments |= {} if on_gpu else {"enforce_eager": True, "kv_cache_memory_gb": 0.25}
        arguments |= json.loads(options.colocate_options)
        return {"class_path": "grpo_lightning.generation.VLLMColocate", "init_args": arguments}
    arguments |= {"launch": True, "port": free_port(), "timeout": 900}
    arguments |= {"launch_gpus": options.server_gpus} if on_gpu else {"launch_arguments": SMALL_SERVER}
    arguments |= json.loads(options.server_options)
    return {"class_path": "grpo_lightning.generation.VLLMServer", "init_args": arguments}


def devices_of(options: argparse.Namespace, kind: str) -> int:
    """Training processes: with an engine in each, the server's GPUs train too."""
    if kind != "colocate":
        return int(options.trainer_gpus)
    return int(options.colocate_gpus or options.trainer_gpus + len(options.server_gpus.split(",")))


def config_of(options: argparse.Namespace, kind: str, run: Path, model: Path, prompts: Path) -> dict[str, Any]:
    prompts_per_step, generations, limit, _ = SIZES[options.shape]
    devices, on_gpu = devices_of(options, kind), options.device == "cuda"
    if prompts_per_step % devices:
        raise SystemExit(f"{prompts_per_step} prompts a step cannot be split over {devices} devices.")
    return {
        "trainer": {
            "default_root_dir": str(run),
            "accelerator": "gpu" if on_gpu else "cpu",
            "devices": list(range(devices)) if on_gpu else devices,
            "strategy": "ddp" if devices > 1 else "auto",
            "precision": options.precision if on_gpu else "32-true",
            "max_steps": options.warmup_steps + options.steps + 1,
            "enable_progress_bar": False,
        },
        "model": {
            "model_name_or_path": str(model),
            "rewards": ["sides.workload.even_fraction"],
            "generator": generator(options, kind),
            "async_rollouts": int(kind == "ahead"),
            "num_generations": generations,
            "max_completion_length": limit,
            "max_tokens_per_microbatch": options.max_tokens_per_microbatch,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.0, "weight_decay": 0.0}},
        },
        "data": {"dataset": str(prompts), "batch_size": prompts_per_step // devices},
        "checkpoint": {"save_top_k": 0, "save_last": False},
    }


def train(options: argparse.Namespace, kind: str, model: Path, prompts: Path) -> list[dict[str, str]]:
    """The logged rows of one run's steps that count."""
    run = options.folder / kind
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    config = run / "config.yaml"
    config.write_text(yaml.safe_dump(config_of(options, kind, run, model, prompts)))
    environment = child.environment(VLLM_NO_USAGE_STATS="1")
    environment |= {} if options.device == "cuda" else {"TORCH_COMPILE_DISABLE": "1"}
    command = [sys.executable, "-m", "grpo_lightning", "fit", "--config", str(config)]
    if child.run(command, env=environment):
        raise SystemExit(f"The run '{kind}' failed.")
    return logged_steps(run)[options.warmup_steps : -1]


def figures(rows: list[dict[str, str]]) -> dict[str, Any]:
    """Medians of what each step logged, and the tokens of all steps."""

    def median(name: str) -> float:
        return round(statistics.median(float(row[name]) for row in rows), 4)

    phases = sorted(name for name in rows[0] if name.startswith("time/") and rows[0][name])
    return {
        "step_seconds": median("step_time"),
        "tokens_per_second": median("tokens_per_second"),
        "phases": {name.removeprefix("time/"): median(name) for name in phases},
        "weight_sync_seconds": median("weight_sync/seconds"),
        "num_tokens": [int(float(row["num_tokens"])) for row in rows],
    }


def compared(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Ratios above 1 say that async rollouts are faster."""
    found: dict[str, Any] = {}
    if "ahead" not in runs:
        return found
    ahead = runs["ahead"]
    if "synchronous" in runs:
        waits = runs["synchronous"]
        found["step_ratio"] = round(waits["step_seconds"] / ahead["step_seconds"], 3)
        found["same_tokens"] = waits["num_tokens"] == ahead["num_tokens"]
    if "colocate" in runs:
        ratio = ahead["tokens_per_second"] / runs["colocate"]["tokens_per_second"]
        found["tokens_per_second_ratio_to_colocate"] = round(ratio, 3)
    return found


def main() -> None:
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    prompts, model = options.folder / "prompts.jsonl", options.folder / f"model_{options.shape}"
    prompts_per_step, _, _, mean_length = SIZES[options.shape]
    count = prompts_per_step * (options.warmup_steps + options.steps + 1)
    prompts.write_text("".join(json.dumps(row) + "\n" for row in word_problems(count)))
    make_model(options.shape, prompts, model, mean_length)
    kinds = [
        "ahead",
        *(["colocate"] if options.compare == "colocate" else []),
        "synchronous",
    ]  # what is asked for comes first
    rows: dict[str, list[dict[str, str]]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind in kinds:
            rows[kind] += train(options, kind, model, prompts)
            result = write(options, rows)  # now: the next run may be cut off
    print(json.dumps({name: value for name, value in result.items() if name not in ("options", "versions")}, indent=1))


def write(options: argparse.Namespace, rows: dict[str, list[dict[str, str]]]) -> dict[str, Any]:
    """The result of the runs so far."""
    runs = {kind: {"devices": devices_of(options, kind)} | figures(found) for kind, found in rows.items() if found}
    result = {
        "command": this_command("benchmarks/async_rollouts.py"),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "options": {name: str(value) for name, value in vars(options).items() if name not in ("folder", "out")},
        "versions": versions(),
        **compared(runs),
        "runs": runs,
    }
    out = options.out or ROOT / "benchmarks" / "results" / f"async_rollouts_{options.shape}_{options.device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
