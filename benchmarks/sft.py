"""Supervised fine-tuning: tokens a second, and the share of the GPU's peak that they are.

python benchmarks/sft.py --device cuda --shape 0.5b                          # writes benchmarks/results/sft_0.5b_cuda.json
python benchmarks/sft.py --device cuda --shape 0.5b --profile 1              # also: kernels of one step of each variant
python benchmarks/sft.py --device cpu --shape nano --rows 8 --steps 2        # seconds, to see that it runs

The product's SFTModule and GRPODataModule on a random model and made-up rows: prompts as long as questions of grade school
arithmetic, completions of about ``--completion-words`` words. ``seconds`` is from the end of one step to the end of the next,
so reading, tokenising and logging count. ``tokens`` are all of a row, prompt and completion, each computed once; operations
are 6 per parameter and token. Variants take turns in one process: the first has the default way, the others one change.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import lightning as L  # noqa: E402 - reads the environment
import torch  # noqa: E402
from sides.command import this_command  # noqa: E402
from sides.make_model import SHAPES, make_model  # noqa: E402
from sides.our_trainer import make_trainer  # noqa: E402
from sides.record import versions  # noqa: E402
from sides.workload import word_problems  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from grpo_lightning import GRPODataModule  # noqa: E402
from grpo_lightning.modules.sft import SFTModule  # noqa: E402

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}
"""Dense bfloat16, from the vendor's data sheets."""
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "compiled": {"torch_compile": True},
    "graphs": {"cuda_graphs": True},
    "compiled graphs": {"cuda_graphs": True, "torch_compile": True},
    "32k": {"max_tokens_per_microbatch": 32768},
    "32k compiled": {"max_tokens_per_microbatch": 32768, "torch_compile": True},
}


class StepTimes(L.Callback):
    """Seconds and tokens of each step; the last one under a profiler where asked for."""

    def __init__(self, steps: int, is_profiled: bool, trace: Path | None = None) -> None:
        self.steps, self.is_profiled, self.trace = steps, is_profiled, trace
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self.peak = 0.0
        self.kernels: list[dict[str, Any]] = []
        self.profiler: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The first step begins."""
        self.mark = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes the time of a step; counts tokens in nobody's time."""
        assert isinstance(pl_module, SFTModule)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.peak = max(self.peak, torch.cuda.max_memory_allocated() / 2**30)
        now = time.perf_counter()
        self.seconds.append(now - self.mark)
        rollouts = pl_module.demonstrations(batch)
        self.tokens.append(int(rollouts.prompt_lengths.sum() + rollouts.completion_lengths.sum()))
        if self.profiler is not None:
            self.profiler.stop()
            self.kernels = most_expensive(self.profiler, self.seconds[-1])
            if self.trace is not None:
                self.profiler.export_chrome_trace(str(self.trace))
        elif self.is_profiled and len(self.seconds) == self.steps:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self.profiler = profile(activities=activities)
            self.profiler.start()
        self.mark = time.perf_counter()


def most_expensive(profiler: Any, seconds: float) -> list[dict[str, Any]]:
    """The names that took most of the step: kernels on a GPU, operators elsewhere."""
    rows = []
    for event in profiler.key_averages():
        spent = event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total
        if torch.cuda.is_available() and event.device_type == torch.autograd.DeviceType.CPU:
            continue
        rows.append({"name": event.key[:100], "ms": round(spent / 1000, 2), "calls": event.count})
    rows.sort(key=lambda row: -row["ms"])
    busy = sum(row["ms"] for row in rows)
    return [{"name": "step under the profiler", "ms": round(1000 * seconds, 1), "busy_ms": round(busy, 1)}, *rows[:25]]


def write_rows(path: Path, count: int, words: int) -> None:
    """A prompt and a completion per line."""
    questions = [row["prompt"][0]["content"] for row in word_problems(count + 64)]
    pool = " ".join(questions).split()
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            start = (index * 37) % (len(pool) - 2 * words)
            answer = " ".join(pool[start : start + words // 2 + (index * 7919) % words])
            row = {
                "prompt": [{"role": "user", "content": questions[index]}],
                "completion": [{"role": "assistant", "content": answer}],
            }
            file.write(json.dumps(row) + "\n")


def run(options: argparse.Namespace, folder: Path, model: Path, data: Path, name: str) -> dict[str, Any]:
    """Trains one variant."""
    L.seed_everything(0, verbose=False)
    total = options.warmup_steps + options.steps
    trace = None if options.trace is None else options.trace.with_name(f"{name}-{options.trace.name}")
    times = StepTimes(total, bool(options.profile), trace)
    module = SFTModule(model_name_or_path=str(model), **VARIANTS[name])
    precision = options.precision if options.device == "cuda" else "32-true"
    steps = total + bool(options.profile)
    trainer = make_trainer(options.device, precision, steps, folder, callbacks=[times])
    trainer.fit(module, datamodule=GRPODataModule(str(data), converter="sft", batch_size=options.rows))
    kept = slice(options.warmup_steps, total)
    seconds, tokens = statistics.median(times.seconds[kept]), statistics.median(times.tokens[kept])
    parameters = sum(parameter.numel() for parameter in module.policy.parameters())
    tflops = 6 * parameters * tokens / seconds / 1e12
    card = torch.cuda.get_device_name() if options.device == "cuda" else ""
    peak = next((value for part, value in PEAK_TFLOPS.items() if part in card), None)
    return {
        "settings": VARIANTS[name],
        "seconds": round(seconds, 4),
        "first_step_seconds": round(times.seconds[0], 2),
        "tokens_in_a_step": tokens,
        "tokens_per_second": round(tokens / seconds),
        "tflops": round(tflops, 2),
        "share_of_peak": None if peak is None else round(tflops / peak, 3),
        "tokens_per_microbatch": getattr(module.passes, "max_tokens", None),
        "peak_gib": round(times.peak, 2),
        "kernels": times.kernels,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="nano")
    parser.add_argument("--precision", default="bf16-mixed", help="on a GPU")
    parser.add_argument("--rows", type=int, default=256, help="of a step")
    parser.add_argument("--completion-words", type=int, default=90)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup-steps", type=int, default=3)
    parser.add_argument("--profile", type=int, default=0, help="1: one more step under torch.profiler")
    parser.add_argument("--trace", type=Path, help="with --profile 1: a trace of it by variant, for Chrome's viewer")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/sft_<shape>_<device>.json")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    out = options.out or ROOT / "benchmarks" / "results" / f"sft_{options.shape}_{options.device}.json"
    record: dict[str, Any] = {
        "command": this_command("benchmarks/sft.py"),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "versions": versions(),
        "options": {name: value for name, value in vars(options).items() if name not in ("out", "variants", "trace")},
        "variants": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data, model = folder / "rows.jsonl", folder / "model"
        write_rows(data, options.rows * (options.warmup_steps + options.steps + 1), options.completion_words)
        make_model(options.shape, data, model, mean_length=0)
        for name in options.variants:
            record["variants"][name] = run(options, folder, model, data, name)
            print(name, json.dumps(record["variants"][name]), flush=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
