"""Batches that are read a step ahead: held-out rows have the numbers of training rows, and other content."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from runs import make_trainer, write_rows

from grpo_lightning import DPOModule, GRPODataModule, RewardModelModule
from grpo_lightning.modules.sft import SFTModule

STAGES = {"sft": (SFTModule, "sft"), "dpo": (DPOModule, "dpo"), "rm": (RewardModelModule, "dpo")}


def rows(first: str, second: str) -> list[dict[str, str]]:
    """Six rows with these answers, the second as the one that was rejected, or that nobody asked for."""
    return [{"prompt": f"{i}+{i}=", "completion": first, "chosen": first, "rejected": second} for i in range(6)]


def make(stage: str, model_dir: Any, tmp_path: Any) -> tuple[Any, GRPODataModule]:
    """A module whose weights stay, and data of which validation follows the announcement of equal row numbers."""
    module_class, converter = STAGES[stage]
    module = module_class(model_name_or_path=str(model_dir), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    data = GRPODataModule(
        dataset=write_rows(tmp_path / "train.jsonl", rows("1", "23")),
        eval_dataset=write_rows(tmp_path / "eval.jsonl", rows("45", "6789")),
        batch_size=3,
        eval_batch_size=3,
        converter=converter,
        shuffle=False,
    )
    return module, data


@pytest.mark.parametrize("stage", STAGES)
def test_validation_at_the_end_of_an_epoch_is_of_the_held_out_rows(tiny_model_dir, tmp_path, stage):
    module, data = make(stage, tiny_model_dir, tmp_path)
    if stage == "dpo":  # of the policy as its own reference every loss is log 2
        module = DPOModule(**module.given_settings, reference_free=True)
    losses: list[float] = []
    note = LambdaCallback(
        on_validation_end=lambda trainer, _: losses.append(float(trainer.callback_metrics["val/loss"]))
    )
    make_trainer(tmp_path, max_steps=4, callbacks=[note]).fit(module, datamodule=data)
    (alone,) = make_trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    assert losses == pytest.approx([alone["val/loss"]] * 2, rel=1e-6)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_each_batch_is_read_once_and_all_but_the_first_ahead(tiny_model_dir, tmp_path, precision):
    module, data = make("sft", tiny_model_dir, tmp_path)
    threads, read = [], module.demonstrations

    def demonstrations(batch: Any) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return read(batch)

    module.demonstrations = demonstrations
    settings = {"limit_val_batches": 0, "precision": precision}
    make_trainer(tmp_path, max_steps=4, **settings).fit(module, datamodule=data)
    assert threads == [True, False, False, False]
