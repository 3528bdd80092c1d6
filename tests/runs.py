"""Short real runs for tests: a toy model, a few prompts, a Trainer on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from toy_models import build_tokenizer

from grpo_lightning import GRPODataModule, GRPOModule
from grpo_lightning.generation import TransformersGenerator
from grpo_lightning.types import Rollouts


def share_of_digits(completions: Sequence[str], **columns: Any) -> list[float]:
    """A dense reward in [0, 1] that a random model earns differently for each completion."""
    return [sum(character.isdigit() for character in text) / max(1, len(text)) for text in completions]


def variety(completions: Sequence[Any], **columns: Any) -> list[float]:
    """A reward of texts or messages that hardly two completions earn alike: how many characters they have, and how many kinds."""
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [len(set(text)) + len(text) / 100 for text in texts]


def write_prompts(path: Path, count: int = 12) -> Path:
    """Additions as text prompts of different lengths with their results."""
    rows = [{"prompt": "0" * (i % 3) + f"{i}+{i + 1}=", "ground_truth": str(2 * i + 1)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def spoilt(*passes: int) -> Any:
    """An optimizer whose gradient is no number after these of all backward passes, counted from 1; that step is skipped."""

    class Spoilt(torch.optim.SGD):
        def __init__(self, params: Any) -> None:
            super().__init__(params, lr=0.1)
            number = count(1)

            def spoil(gradient: torch.Tensor) -> torch.Tensor | None:
                return torch.full_like(gradient, torch.nan) if next(number) in passes else None

            self.param_groups[0]["params"][0].register_hook(spoil)

    return Spoilt


def make_module(model_dir: str | Path, **settings: Any) -> GRPOModule:
    """A GRPOModule on the toy model: 4 completions of up to 8 tokens, plain SGD unless told otherwise."""
    defaults: dict[str, Any] = {
        "model_name_or_path": str(model_dir),
        "rewards": [share_of_digits],
        "num_generations": 4,
        "max_completion_length": 8,
        "generator": TransformersGenerator(),  # also where vLLM is installed: its engine takes seconds to start
        "optimizer": lambda params: torch.optim.SGD(params, lr=0.1),
        "max_grad_norm": 0.0,
    }
    return GRPOModule(**(defaults | settings))


def make_data(tmp_path: Path, **settings: Any) -> GRPODataModule:
    """Three prompts a step."""
    defaults: dict[str, Any] = {"dataset": str(write_prompts(tmp_path / "train.jsonl")), "batch_size": 3}
    return GRPODataModule(**(defaults | settings))


def set_up_data(stage: str = "fit", **settings: Any) -> GRPODataModule:
    """A data module on its own, with a tokenizer, set up."""
    data = GRPODataModule(**settings)
    data.tokenizer = build_tokenizer()
    data.prepare_data()
    data.setup(stage)
    return data


def make_trainer(tmp_path: Path, max_steps: int = 1, **settings: Any) -> L.Trainer:
    """A silent Trainer on one CPU process."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": max_steps,
        "default_root_dir": str(tmp_path),
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }
    return L.Trainer(**(defaults | settings))


def fit(
    model_dir: str | Path,
    tmp_path: Path,
    max_steps: int = 1,
    trainer: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    on_module: Callable[[GRPOModule], None] | None = None,
    **settings: Any,
) -> GRPOModule:
    """Trains for ``max_steps`` optimizer steps and returns the module."""
    module = make_module(model_dir, **settings)
    if on_module:
        on_module(module)
    make_trainer(tmp_path, max_steps, **(trainer or {})).fit(module, datamodule=make_data(tmp_path, **(data or {})))
    return module


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def train_stage(
    module_class: type,
    converter: str,
    own_rows: Sequence[dict[str, Any]],
    model_dir: Path,
    folder: Path,
    max_steps: int = 1,
    rows: Sequence[dict[str, Any]] | None = None,
    data: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A module of another stage (SFT, DPO, reward models) after some steps of three rows each, of plain SGD."""
    trainer_settings, resume_from = settings.pop("trainer", {}), settings.pop("resume_from", None)
    defaults = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "max_grad_norm": 0.0}
    module = module_class(model_name_or_path=str(model_dir), **(defaults | settings))
    written = write_rows(folder / "rows.jsonl", own_rows if rows is None else rows)
    source = {"dataset": written, "batch_size": 3, "converter": converter, "shuffle": False}
    trainer = make_trainer(folder, max_steps, **trainer_settings)
    trainer.fit(module, datamodule=GRPODataModule(**(source | (data or {}))), ckpt_path=resume_from)
    return module


def weights(module: Any) -> dict[str, torch.Tensor]:
    """Copies of the policy's parameters."""
    assert module.policy.model is not None
    return {name: parameter.detach().clone() for name, parameter in module.policy.model.named_parameters()}


def token_logprobs(model: torch.nn.Module, rollouts: Rollouts) -> list[torch.Tensor]:
    """Logprobs of each completion's tokens, one unpadded sequence at a time."""
    rows = []
    for completion, group in zip(rollouts.completions(), rollouts.group.tolist(), strict=True):
        prompt = rollouts.prompts()[group]
        logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        rows.append(logits.log_softmax(-1).gather(-1, completion[:, None])[:, 0])
    return rows


class FailsInStep(L.Callback):
    """Makes the loss of one step raise ArithmeticError, once its rollouts are there.

    Args:
        number: Of the step, from 1.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        original = pl_module.policy_loss

        def loss(*args: Any) -> Tensor:
            if pl_module.steps_done == self.number - 1:
                raise ArithmeticError(f"in step {self.number}")
            return original(*args)

        pl_module.policy_loss = loss
