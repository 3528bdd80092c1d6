"""What loggers get of a step: its own numbers, and none of an earlier one."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from runs import fit, make_module, make_trainer, share_of_digits, train_stage, write_prompts
from transformers import AutoTokenizer

from grpo_lightning import GRPODataModule
from grpo_lightning.modules.sft import SFTModule

DEMONSTRATIONS = [{"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in (1, 20, 300)]
"""One step's."""


def rare(completions: list[str], trainer_state: Any, **columns: Any) -> list[float | None]:
    """Known of the first step alone."""
    return [1.0 if trainer_state.global_step == 0 else None for _ in completions]


def test_a_metric_that_a_step_lacks_is_not_logged_with_the_value_of_an_earlier_step(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Lightning keeps what was logged until the epoch ends; a run that was resumed in between has nothing to keep."""
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    trainer = {"logger": logger, "log_every_n_steps": 1}
    fit(tiny_model_dir, tmp_path, 3, trainer=trainer, rewards=[share_of_digits, rare])  # of an epoch of four
    with (Path(logger.log_dir) / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["loss"]]
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert [row["rewards/rare/mean"] for row in rows] == ["1.0", "", ""]
    assert all(row["rewards/share_of_digits/mean"] for row in rows)


def test_a_step_on_written_data_tells_its_norm_its_rate_and_its_speed(tiny_model_dir: Path, tmp_path: Path) -> None:
    module = train_stage(SFTModule, "sft", DEMONSTRATIONS, tiny_model_dir, tmp_path)
    numbers = module.step_metrics
    assert set(numbers) == {
        *("loss", "grad_norm", "skipped_updates", "learning_rate", "step_time", "tokens_per_second"),
        "update/changed_since_start",
    }
    assert (numbers["learning_rate"], numbers["skipped_updates"]) == (0.1, 0.0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokens = sum(len(tokenizer(row["completion"]).input_ids) + 1 for row in DEMONSTRATIONS)  # and an end of text each
    assert numbers["tokens_per_second"] * numbers["step_time"] == pytest.approx(tokens)
    assert numbers["grad_norm"] > 0 and 0 < numbers["update/changed_since_start"] <= 1


def test_a_skipped_step_on_written_data_has_no_norm(tiny_model_dir: Path, tmp_path: Path) -> None:
    class WithoutGradient(SFTModule):
        def imitation_loss(self, *args: Any) -> Any:
            loss, metrics = super().imitation_loss(*args)
            return loss * float("nan"), metrics

    module = train_stage(WithoutGradient, "sft", DEMONSTRATIONS, tiny_model_dir, tmp_path, trainer={"max_epochs": 1})
    assert module.step_metrics["skipped_updates"] == 1.0 and "grad_norm" not in module.step_metrics
    assert module.step_metrics["update/changed_since_start"] == 0.0


def test_data_that_keeps_outcomes_finds_the_step_counted_and_may_fail(tiny_model_dir: Path, tmp_path: Path) -> None:
    found = []

    class Keeping(GRPODataModule):
        def record(self, outcomes: Any) -> dict[str, torch.Tensor]:
            assert self.trainer is not None
            found.append(self.trainer.lightning_module.steps_done)
            if len(found) == 2:
                raise OSError("the disk is full")
            return super().record(outcomes)

    module, data = (
        make_module(tiny_model_dir),
        Keeping(dataset=str(write_prompts(tmp_path / "train.jsonl")), batch_size=3),
    )
    with pytest.raises(OSError, match="the disk is full"):
        make_trainer(tmp_path, max_steps=3).fit(module, datamodule=data)
    assert found == [1, 2] and module.steps_done == 2  # the policy has been improved twice
