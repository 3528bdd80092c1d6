"""What a config of TRL's distillation trainers trains, here and there: the same prompts, divergences and gradients of two steps.

Both decode greedily (top_k 1), and take the rows in order, so that they train on the same completions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from toy_models import save_toy_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from grpo_lightning import GRPOModule
from grpo_lightning.commands.cli import GRPOCLI
from grpo_lightning.commands.migrate import main

trl = pytest.importorskip("trl")
if trl.__version__ != "1.16.0":
    pytest.skip(f"compared with TRL 1.16.0, found {trl.__version__}", allow_module_level=True)

from trl.experimental.sdft import SDFTConfig, SDFTTrainer  # noqa: E402
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer  # noqa: E402

ROWS = [
    {"prompt": [{"role": "user", "content": f"{i}+{i}="}], "ground_truth": str(2 * i), "privileged_context": f"say {i}"}
    for i in range(12)
]
SETTINGS = {
    **{"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-4},
    **{"bf16": False, "logging_steps": 1, "report_to": "none", "save_strategy": "no", "gradient_checkpointing": False},
    **{"top_k": 1, "max_completion_length": 6, "shuffle_dataset": False},
}


def always(completions: Sequence[Any], **columns: Any) -> list[float]:
    """Everybody succeeds."""
    return [1.0] * len(completions)


TRAINERS: dict[str, tuple[type, type, dict[str, Any], dict[str, Any]]] = {
    "distillation": (trl.DistillationConfig, trl.DistillationTrainer, {}, {}),
    "sdft": (SDFTConfig, SDFTTrainer, {"num_generations": 2, "distillation_mode": "full_logits"}, {}),
    "sdpo": (SDPOConfig, SDPOTrainer, {"num_generations": 2}, {"reward_funcs": always}),
}
"""With settings of their own, and what TRL's scripts give the trainer."""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """With distributions that are sharp enough for greedy decoding to have no ties."""
    found = {}
    for seed, (name, scale) in enumerate((("student", 4.0), ("teacher", 6.0))):
        path = save_toy_model(tmp_path_factory.mktemp(name), seed=seed)
        model = AutoModelForCausalLM.from_pretrained(path)
        with torch.no_grad():
            model.lm_head.weight *= scale
        model.save_pretrained(path)
        found[name] = str(path)
    return found


class Rates(TrainerCallback):
    """Learning rates that steps are taken at."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.taken.append(given["optimizer"].param_groups[0]["lr"])


def theirs(name: str, models: dict[str, str], folder: Path) -> tuple[list[tuple[float, float]], list[float]]:
    """Loss and norm of the gradient of each step, and its learning rate."""
    config, trainer, own, given = TRAINERS[name]
    settings = SETTINGS | own | {"use_cpu": True, "disable_tqdm": True, "output_dir": str(folder / "trl")}
    if name == "distillation":
        given = {"teacher_model": models["teacher"]}
    rates = Rates()
    made = trainer(
        model=models["student"],
        args=config(**settings),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(models["student"]),
        callbacks=[rates],
        **given,
    )
    made.train()
    logs = [log for log in made.state.log_history if "loss" in log]
    return [(log["loss"], log["grad_norm"]) for log in logs], rates.taken


def ours(name: str, models: dict[str, str], folder: Path, monkeypatch) -> tuple[list[tuple[float, float]], list[float]]:
    """The same of the migrated config, by the command ``fit``."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    old = SETTINGS | TRAINERS[name][2] | {"model_name_or_path": models["student"]}
    old |= {"dataset_name": str(folder / "rows.jsonl"), "output_dir": str(folder / "run")}
    if name == "distillation":
        old["teacher_model_name_or_path"] = models["teacher"]
    if name == "sdpo":
        old["reward_funcs"] = f"{__name__}.always"
    (folder / "old.yaml").write_text(yaml.safe_dump(old))
    assert main([str(folder / "old.yaml"), "--trainer", name, "--output", str(folder / "new.yaml")]) == 0
    steps, rates = [], []
    step = GRPOModule.training_step

    def noted(self: GRPOModule, batch: Any, batch_idx: int) -> None:
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        step(self, batch, batch_idx)
        steps.append((self.step_metrics["loss"], self.step_metrics["grad_norm"]))

    monkeypatch.setattr(GRPOModule, "training_step", noted)
    device = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"]
    GRPOCLI(args=["fit", "--config", str(folder / "new.yaml"), *device])
    return steps, rates


@pytest.mark.parametrize("name", TRAINERS)
def test_two_steps_of_a_migrated_config_are_those_of_trls_trainer(models, tmp_path, monkeypatch, name):
    trls, mine = theirs(name, models, tmp_path), ours(name, models, tmp_path, monkeypatch)
    assert len(mine[0]) == len(trls[0]) == 2
    for one, other in zip(mine[0], trls[0], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert mine[1] == trls[1] == [1e-4, 5e-5]
