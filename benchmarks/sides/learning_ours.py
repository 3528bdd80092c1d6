"""Runs of grpo_lightning for ``learning.py``: ``python -m sides.learning_ours RUN.json SEED [SEED ...]``.

Each is ``python -m grpo_lightning fit --config ...`` in this process, one after the other, with a callback that keeps the curve.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from grpo_lightning.__main__ import main as grpo_lightning
from sides.learning_curve import Curve
from sides.learning_run import LearningRun

OF_SIDE: dict[str, dict[str, Any]] = {
    "ours": {},
    "partial": {
        "partial_rollouts": {"carry_over": 1.0},
        "importance_sampling_correction": True,
        "importance_sampling_mode": "token_truncate",  # each token by the weights that sampled it, as the docs advise
    },
}
"""Model settings of each side of ours: steps that wait for their completions, and steps that carry the longest ones over."""


class CurveCallback(Callback):
    """Tells the curve where steps begin and end.

    Args:
        run_file: Of a LearningRun.
        seed: Of this run.
        born: When it began.
        side: What the record is called.
    """

    def __init__(self, run_file: str, seed: int, born: float, side: str = "ours") -> None:
        self.curve = Curve(LearningRun.load(run_file), side, seed, born)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts the clock, once."""
        if batch_idx == 0 and trainer.current_epoch == 0:
            self.curve.start(pl_module.policy.model, pl_module.policy.tokenizer)  # type: ignore[arg-type]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends the step."""
        self.curve.end_step(pl_module.steps_done, pl_module.step_metrics["reward"])  # type: ignore[arg-type, index]


def config_of(run: LearningRun, run_file: str, seed: int, born: float, side: str) -> dict[str, Any]:
    """A complete config; what it leaves out keeps this project's defaults. ``side`` is a key of ``OF_SIDE``."""
    generator = {"class_path": "grpo_lightning.generation.TransformersGenerator"}
    if run.on_gpu:
        arguments = {"gpu_memory_utilization": run.gpu_memory_utilization, "max_model_length": run.max_model_length}
        generator = {"class_path": "grpo_lightning.generation.VLLMColocate", "init_args": arguments}
    optimizer = {"lr": run.learning_rate, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "fused": True}
    curve = {"run_file": run_file, "seed": seed, "born": born, "side": side}
    return {
        "seed_everything": seed,
        "trainer": {
            "default_root_dir": str(Path(run.folder, f"{side}_seed{seed}_{time.time_ns()}")),
            "accelerator": "gpu" if run.on_gpu else "cpu",
            "devices": 1,
            "precision": "bf16-mixed" if run.on_gpu else "32-true",
            "max_steps": run.steps,
            "enable_progress_bar": False,
            "callbacks": [
                {"class_path": "grpo_lightning.callbacks.RunPlan"},
                {"class_path": "grpo_lightning.callbacks.SystemRecord"},
                {"class_path": "sides.learning_ours.CurveCallback", "init_args": curve},
            ],
        },
        "model": {
            "model_name_or_path": run.model,
            "rewards": ["sides.addition.right_sum"],
            "generator": generator,
            "num_generations": run.num_generations,
            "max_completion_length": run.max_completion_length,
            "temperature": run.temperature,
            "loss_type": "dapo",
            "beta": 0.0,
            "epsilon": run.epsilon,
            "scale_rewards": "group",
            "importance_sampling_correction": run.on_gpu,  # TRL corrects vLLM's logprobs only
            "importance_sampling_mode": "sequence_mask",
            "importance_sampling_max": 3.0,
            "max_grad_norm": run.max_grad_norm,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": optimizer},
            **OF_SIDE[side],
        },
        "data": {"dataset": str(run.train_file), "batch_size": run.prompts_per_step},
        "checkpoint": {"save_top_k": 0, "save_last": False},
    }


def main(run_file: str, seeds: list[int], side: str = "ours") -> None:
    """Trains the seeds in turn, then leaves the process: an engine in it may hang at exit."""
    run = LearningRun.load(run_file)
    born = float(os.environ.get("LEARNING_STARTED", time.time()))
    for seed in seeds:
        config = Path(run.folder, f"{side}_seed{seed}.yaml")
        config.write_text(yaml.safe_dump(config_of(run, run_file, seed, born, side)), encoding="utf-8")
        grpo_lightning(["fit", "--config", str(config)])
        born = time.time()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], [int(seed) for seed in sys.argv[2:]])
