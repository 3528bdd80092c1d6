"""A run of the command line on two devices: its config, its end, and what it logged."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from runs import write_prompts

ROOT = Path(__file__).parents[2]
ON_CPU = "GRPO_LIGHTNING_TWO_DEVICES_ON_CPU"
"""In the environment: run the same on two processes without a GPU, to see that the scripts work."""
SECONDS = 240
"""Of a run, with an engine's start; it is ended then, and its output is shown."""
LIMIT = 64
"""Tokens of a completion with its prompt."""


def place(devices: int = 2) -> str | None:
    """Cuda where as many GPUs are visible, cpu where ``ON_CPU`` asks for it; else None."""
    if torch.cuda.is_available() and torch.cuda.device_count() >= devices:
        return "cuda"
    return "cpu" if os.environ.get(ON_CPU) else None


@dataclass(frozen=True)
class Ran:
    """What a run left."""

    steps: list[dict[str, float]]
    """Metrics of each step that has them."""
    folder: Path
    output: str


def config(folder: Path, model: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Three steps as users run them: bf16-mixed, colocated engines, AdamW, a checkpoint at the end.

    Args:
        folder: Of the run.
        model: Directory of a toy model.
        settings: Dotted names with their values, in place of those below.
    """
    on_gpu = place(devices=1) == "cuda"
    engine = {"max_model_length": LIMIT, "enforce_eager": True, "gpu_memory_utilization": 0.2}
    engine |= {"kv_cache_memory_gb": 0.1}  # measures nothing, so that several tests can run at a time
    made: dict[str, Any] = {
        "seed_everything": 0,
        "trainer": {
            "default_root_dir": str(folder),
            "accelerator": "gpu" if on_gpu else "cpu",
            "devices": 2,
            "strategy": "ddp",
            "precision": "bf16-mixed" if on_gpu else "32-true",
            "max_steps": 3,
            "enable_progress_bar": False,
        },
        "model": {
            "model_name_or_path": str(model),
            "rewards": ["runs.share_of_digits"],
            "generator": {"class_path": "grpo_lightning.generation.VLLMColocate", "init_args": engine},
            "num_generations": 4,
            "max_completion_length": 12,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0e-3}},
        },
        "data": {"dataset": str(write_prompts(folder / "train.jsonl", 24)), "batch_size": 2},
        "checkpoint": {"every_n_train_steps": 100, "save_last": True},
    }
    for name, value in settings.items():
        at = made
        *parents, last = name.split(".")
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
    return made


def fit(folder: Path, model: Path, *options: str, **settings: Any) -> Ran:
    """Runs ``fit`` with all its ranks, and ends it with them where it takes too long.

    Args:
        folder: Of the run; may have one that goes on.
        model: Directory of a toy model.
        options: Further words of the command line.
        settings: Of the config, dots written as ``__``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "given.yaml"
    path.write_text(yaml.safe_dump(config(folder, model, {k.replace("__", "."): v for k, v in settings.items()})))
    known = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"PYTHONPATH": os.pathsep.join(known), "NCCL_NVLS_ENABLE": "0", "OMP_NUM_THREADS": "1"}
    output = folder / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "grpo_lightning", "fit", "--config", str(path), *options],
            env=os.environ | variables,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert code == 0, f"status {code} (None: ended after {SECONDS} s)\n{output.read_text()[-6000:]}"
    return Ran(logged(folder), folder, output.read_text())


def logged(folder: Path) -> list[dict[str, float]]:
    """The rows of steps in the newest CSV of a run."""
    newest = max(folder.glob("logs/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    with newest.open() as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    return [row for row in rows if "step_time" in row]


def note(name: str, ran: Ran) -> None:
    """Adds a run's figures to the file that ``GRPO_LIGHTNING_TWO_DEVICES_OUT`` names, at once: the next may be cut off."""
    out = os.environ.get("GRPO_LIGHTNING_TWO_DEVICES_OUT")
    if out:
        card = torch.cuda.get_device_name() if place(devices=1) == "cuda" else "cpu"
        with Path(out).open("a") as file:
            file.write(json.dumps({"run": name, "device": card, "steps": ran.steps}) + "\n")


def assert_trained(ran: Ran, steps: int) -> None:
    """All steps are there, every number is one, the weights moved, and the sampler had the trainer's weights."""
    assert len(ran.steps) == steps, ran.output[-3000:]
    for row in ran.steps:
        assert all(math.isfinite(value) for value in row.values()), row
        assert row["grad_norm"] > 0
        assert row["sampling/sampling_logp_difference/mean"] < 0.05
    assert ran.steps[-1]["update/changed_since_start"] > 0.5
