"""Runs of the quickstart's model, which calls a calculator that is an environment; for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import make_module, make_trainer, weights

from grpo_lightning import GRPODataModule, GRPOModule
from grpo_lightning.callbacks.completions import CompletionWriter
from grpo_lightning.rollouts.turns.settings import Turns

MODEL = Path(__file__).parents[3] / "assets" / "quickstart_tools" / "model"
ROWS = [
    ("8+14+1=", "23"),
    ("14+393-74=", "333"),
    ("53+86+36=", "175"),
    ("9-4+42=", "47"),
    ("5+5+5=", "15"),
    ("1+2-3=", "0"),
]


class Calculator:
    """TRL's form: methods are tools; it remembers what it was asked."""

    def reset(self, **row: Any) -> None:
        """Forgets."""
        self.results: list[int] = []

    def add(self, a: int, b: int) -> int:
        """Adds two numbers.

        Args:
            a: The first one.
            b: The second one.
        """
        self.results.append(a + b)
        return a + b

    def subtract(self, a: int, b: int) -> int:
        """Takes one number away from another.

        Args:
            a: What is taken from.
            b: What is taken away.
        """
        self.results.append(a - b)
        return a - b


class AddUp:
    """Answers turns of text: rewards digits, and ends after two turns."""

    def reset(self, **row: Any) -> str:
        """Asks."""
        self.turns = 0
        return " And?"

    def step(self, text: str) -> tuple[str, float, bool]:
        """Counts digits."""
        self.turns += 1
        return "More.", float(sum(map(str.isdigit, text))), self.turns == 2


def results(environments: Sequence[Calculator], ground_truth: Sequence[str], **columns: Any) -> list[float]:
    """A reward of TRL's form: one for the right last result, a tenth for each call."""
    rows = zip(environments, ground_truth, strict=True)
    return [float(e.results[-1:] == [int(truth)]) + 0.1 * len(e.results) for e, truth in rows]


class Recorder(L.Callback):
    """The rollouts and losses of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: GRPOModule, *args: Any) -> None:
        record, metrics = pl_module.last_step, pl_module.step_metrics
        self.steps.append(
            {
                "uids": record.batch.uids,
                "ids": record.rollouts.completion_ids.tolist(),
                "mask": record.rollouts.completion_mask.tolist(),
                "rewards": record.rewards.values.tolist(),
                "metrics": metrics,
            }
        )


def write_rows(path: Path, rows: Sequence[tuple[str, str]] = ROWS) -> Path:
    """Conversations with their results."""
    lines = [{"prompt": [{"role": "user", "content": asked}], "ground_truth": truth} for asked, truth in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def make_run(folder: Path, max_steps: int, trainer: dict[str, Any] | None = None, **settings: Any) -> tuple[Any, ...]:
    """Module, trainer, data and recorder of a run on the calculator, with a checkpoint after each step."""
    defaults: dict[str, Any] = {
        "environment": Calculator,
        "turns": Turns(max_turns=4),
        "rewards": [results],
        "max_completion_length": 96,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9),
    }
    data = {"batch_size": 2, "eval_batch_size": 2, "dataset": str(write_rows(folder / "train.jsonl"))}
    data |= settings.pop("data", {})
    module, recorder = make_module(MODEL, **(defaults | settings)), Recorder()
    checkpoints = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    callbacks = {"callbacks": [recorder, checkpoints, CompletionWriter()], "enable_checkpointing": True}
    made = make_trainer(folder, max_steps, **(callbacks | (trainer or {})))
    return module, made, GRPODataModule(**data), recorder


def train(folder: Path, max_steps: int = 4, ckpt_path: Path | None = None, **settings: Any) -> dict[str, Any]:
    """What the steps were, and the weights behind them."""
    folder.mkdir(parents=True, exist_ok=True)
    module, trainer, data, recorder = make_run(folder, max_steps, **settings)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=False)
    return {"steps": recorder.steps, "weights": weights(module), "module": module}
