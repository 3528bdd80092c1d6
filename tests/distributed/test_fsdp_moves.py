"""A sharded checkpoint goes on where fewer ranks are left: on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from copy_generator import CopyGenerator
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import run_ranks
from runs import make_data, make_module, make_trainer

from grpo_lightning.distributed.sharding import is_sharded, whole


def fit(folder: Path, model_dir: Path, ranks: int, ckpt: Path | None = None) -> dict[str, Any]:
    """Three steps with a checkpoint after each, or what is left of them."""
    module = make_module(
        model_dir,
        generator=CopyGenerator(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    )
    checkpoints = ModelCheckpoint(folder / "checkpoints", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = make_trainer(
        folder, 3, devices=ranks, strategy="fsdp2", callbacks=[checkpoints], enable_checkpointing=True
    )
    data = make_data(folder / "data", batch_size=4 // ranks)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=False)
    weights = {name: whole(parameter.detach()).clone() for name, parameter in module.policy.model.named_parameters()}
    return {"weights": weights, "sharded": is_sharded(module.policy.model), "steps": module.steps_done}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path


def test_a_run_on_two_ranks_goes_on_on_one(folder, tiny_model_dir):
    expected, _ = run_ranks(2, fit, folder, tiny_model_dir, 2)
    checkpoint = folder / "checkpoints" / "step=2.ckpt"
    assert checkpoint.is_dir()
    (resumed,) = run_ranks(1, fit, folder, tiny_model_dir, 1, checkpoint)
    assert resumed["sharded"] and resumed["steps"] == expected["steps"] == 3
    torch.testing.assert_close(resumed["weights"], expected["weights"], rtol=1e-4, atol=1e-6)
