"""How a step scales: DDP at fixed work per GPU, and FSDP2 of a larger shape with its peak memory.

python benchmarks/multi_gpu.py --gpus 1 2 --shape 0.5b                 # DDP: 1 GPU against 2, the same prompts per GPU
python benchmarks/multi_gpu.py --gpus 2 --shape 7b --strategy fsdp2    # FSDP2: seconds and GiB a step
python benchmarks/multi_gpu.py --gpus 2 --shape 7b --strategy fsdp2 --tensor-parallel-size 2
python benchmarks/multi_gpu.py --gpus 1 2 --shape nano --device cpu    # a minute, to see that it runs; FSDP2 also needs
                                                                       # --generator with VLLMColocate

The model is random. ``tokens_per_second`` counts completion tokens on all GPUs, median over the steps after the warm-up;
``efficiency`` is that of n GPUs over n times that of one. ``phases`` are seconds of the slowest rank. ``peak_memory_gib`` of
each rank includes the engine, which takes ``gpu_memory_utilization`` (0.3) of the GPU. ``all_reduce_gb_per_s`` is what a plain
sum over the ranks does. The 7B shape recomputes activations: those of 16,384 tokens would need about 100 GiB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from sides import child
from sides.command import this_command
from sides.logged_steps import logged_steps
from sides.record import versions
from sides.whole_file import write_whole
from sides.workload import word_problems

ROOT = Path(__file__).resolve().parents[1]
SIZES = {  # prompts per GPU and step, completions per prompt, their limit and mean length in tokens
    "nano": (2, 4, 16, 8),
    "0.5b": (64, 8, 1024, 220),
    "1.5b": (64, 8, 1024, 220),
    "7b": (16, 8, 1024, 220),
}


class PeakMemory(Callback):
    """Writes after each step the most memory that torch has held on this rank's GPU, in GiB.

    Args:
        folder: Where to.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Writes: a run may be cut off."""
        peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        write_whole(Path(self.folder, f"peak{trainer.global_rank}.json"), json.dumps(peak))


class LinkSpeed(Callback):
    """Writes before the first step how fast the ranks' links are: what a slow sum of gradients has to be compared with.

    Args:
        folder: Where to.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Times all-reduces of 256 MiB; GB/s are the tensor's bytes over the seconds of one."""
        if trainer.world_size == 1:
            return
        tensor, times = torch.zeros(2**26, device=pl_module.device), []
        for _ in range(5):
            started = time.perf_counter()
            torch.distributed.all_reduce(tensor)
            float(tensor[0])  # waits for it
            times.append(time.perf_counter() - started)
        if trainer.is_global_zero:
            write_whole(Path(self.folder, "links.json"), json.dumps(tensor.nbytes / 1e9 / min(times)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2], help="numbers of processes, one run each")
    parser.add_argument("--shape", choices=SIZES, default="0.5b")
    parser.add_argument("--strategy", choices=("ddp", "fsdp2"), default="ddp")
    parser.add_argument("--tensor-parallel-size", type=int, default=1, help="with fsdp2: GPUs that split each matrix")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--steps", type=int, default=5, help="that count, after --warmup-steps")
    parser.add_argument("--warmup-steps", type=int, default=2)
    parser.add_argument("--max-tokens-per-microbatch", default="auto", help="a number, or what fits, as by default")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--generator", default="{}", help="JSON: class_path and init_args; VLLMColocate on a GPU")
    parser.add_argument("--seconds-per-run", type=float, help="end a run after it, and take the steps that it came to")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "multi_gpu")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/multi_gpu_<strategy>_<shape>.json")
    return parser.parse_args()


def write_config(options: argparse.Namespace, gpus: int, run: Path, model: Path, prompts: Path) -> Path:
    batch, generations, limit, _ = SIZES[options.shape]
    on_gpu = options.device == "cuda"
    generator = json.loads(options.generator) or {
        "class_path": f"grpo_lightning.generation.{'VLLMColocate' if on_gpu else 'TransformersGenerator'}",
        "init_args": {"max_model_length": limit + 1024} if on_gpu else {},
    }
    fsdp2 = {
        "class_path": "grpo_lightning.distributed.strategies.FSDP2Strategy",
        "init_args": {"tensor_parallel_size": options.tensor_parallel_size},
    }
    strategy = fsdp2 if options.strategy == "fsdp2" else "ddp" if gpus > 1 else "auto"
    config: dict[str, Any] = {
        "trainer": {
            "default_root_dir": str(run),
            "accelerator": "gpu" if on_gpu else "cpu",
            "devices": gpus,
            "strategy": strategy,
            "precision": options.precision if on_gpu else "32-true",
            "max_steps": options.warmup_steps + options.steps,
            "enable_progress_bar": False,
            "callbacks": [
                {"class_path": f"multi_gpu.{name}", "init_args": {"folder": str(run)}}
                for name in ("PeakMemory", "LinkSpeed")
            ],
        },
        "model": {
            "model_name_or_path": str(model),
            "rewards": ["sides.workload.even_fraction"],
            "generator": generator,
            "num_generations": generations,
            "max_completion_length": limit,
            "max_tokens_per_microbatch": yaml.safe_load(options.max_tokens_per_microbatch),
            "gradient_checkpointing": options.gradient_checkpointing or options.shape == "7b",
        },
        "data": {"dataset": str(prompts), "batch_size": batch},
        "checkpoint": {"save_top_k": 0, "save_last": False},
    }
    path = run / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def command_of(options: argparse.Namespace, gpus: int, run: Path, model: Path, prompts: Path) -> list[str]:
    """The command of one run, in a fresh folder."""
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    config = write_config(options, gpus, run, model, prompts)
    return [sys.executable, "-m", "grpo_lightning", "fit", "--config", str(config)]


def figures(options: argparse.Namespace, gpus: int, run: Path, is_cut_off: bool) -> dict[str, Any]:
    """Of the steps that a run came to."""
    rows = logged_steps(run)[options.warmup_steps :]
    if not rows:
        return {"gpus": gpus, "steps": 0, "is_cut_off": is_cut_off}
    phases = [name for name in rows[0] if name.startswith("time/")]
    peaks = [json.loads(path.read_text()) for path in sorted(run.glob("peak*.json"))]
    links = [json.loads(path.read_text()) for path in run.glob("links.json")]
    return {
        "gpus": gpus,
        "steps": len(rows),
        "is_cut_off": is_cut_off,
        "tokens_per_second": median(rows, "tokens_per_second"),
        "step_seconds": median(rows, "step_time"),
        "phases": {name.removeprefix("time/"): median(rows, name) for name in phases},
        "peak_memory_gib": [round(peak, 2) for peak in peaks],
        "all_reduce_gb_per_s": round(links[0], 2) if links else None,
    }


def run_for(command: list[str], seconds: float | None) -> bool:
    """Runs a command with all its ranks; True if it had to be ended, or failed: what it had written is still there."""
    try:
        return child.run(command, seconds, env=child.environment()) != 0
    except subprocess.TimeoutExpired:
        return True


def median(rows: list[dict[str, str]], name: str) -> float:
    return round(statistics.median(float(row[name]) for row in rows if row[name]), 4)


def main() -> None:
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    prompts, model = options.folder / "prompts.jsonl", options.folder / f"model_{options.shape}"
    batch, _, _, mean_length = SIZES[options.shape]
    count = batch * max(options.gpus) * (options.warmup_steps + options.steps)
    rows = list(word_problems(count))
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = {"shape": options.shape, "prompts": prompts, "out": model, "mean-length": mean_length}
    flags = [f"--{name}={value}" for name, value in made.items()]
    # In a process of its own, which gives the GPU's memory back.
    subprocess.run([sys.executable, "-m", "sides.make_model", *flags], env=child.environment(), check=True)
    runs: list[dict[str, Any]] = []
    for gpus in options.gpus:
        run = options.folder / f"{options.strategy}_{options.tensor_parallel_size}_{options.shape}_{gpus}"
        is_cut_off = True
        try:
            is_cut_off = run_for(command_of(options, gpus, run, model, prompts), options.seconds_per_run)
        finally:  # also when `timeout` ends this process
            runs.append(figures(options, gpus, run, is_cut_off))
            write(options, runs)
    print(json.dumps(runs, indent=1))


def write(options: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    alone = next((run.get("tokens_per_second") for run in runs if run["gpus"] == 1), None)
    for run in runs if alone else ():
        if "tokens_per_second" in run:
            run["efficiency"] = round(run["tokens_per_second"] / (run["gpus"] * alone), 3)
    result = {
        "command": this_command("benchmarks/multi_gpu.py"),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "options": {name: str(value) for name, value in vars(options).items() if name not in ("folder", "out")},
        "versions": versions(),
        "runs": runs,
    }
    out = options.out or ROOT / "benchmarks" / "results" / f"multi_gpu_{options.strategy}_{options.shape}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
