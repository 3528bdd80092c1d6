"""A checkpoint whose run had other settings: it is gone on with, or refused in a message that says which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import make_data, make_module, make_trainer

from grpo_lightning.datamodules.curriculum import Curriculum
from grpo_lightning.errors import ExplainedError

LORA = {"finetuning_type": "lora", "optimizer": lambda weights: torch.optim.AdamW(weights, lr=1e-3)}
STREAM = {"streaming": True, "shuffle_block": 5}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "a curriculum now": ({}, {}, {}, {"curriculum": Curriculum()}, "data is one dataset without a curriculum"),
    "a curriculum then": ({}, {"curriculum": Curriculum()}, {}, {}, "this run's is one dataset without a curriculum"),
    "a stream now": ({}, {}, {}, STREAM, "read as a whole, and data.streaming is true"),
    "a stream then": ({}, STREAM, {}, {}, "a stream, and data.streaming is false"),
    "another block": ({}, STREAM, {}, STREAM | {"shuffle_block": 4}, "data.shuffle_block was 5 and is 4"),
    "another rank": (LORA, {}, LORA | {"lora_rank": 4}, {}, "r was 8, is 4. Use the config.yaml of its run"),
}


def run(model_dir: Path, folder: Path, settings: dict[str, Any], data: dict[str, Any], steps: int = 1) -> Any:
    """So many steps, from the checkpoint that is there, which stays the one of the first step."""
    saved = folder / "first.ckpt"
    resumed = str(saved) if saved.exists() else None
    saving = [] if resumed else [ModelCheckpoint(folder, "first", every_n_train_steps=1)]
    trainer = make_trainer(folder, steps, callbacks=saving, enable_checkpointing=bool(saving))
    module = make_module(model_dir, num_generations=2, max_completion_length=4, **settings)
    trainer.fit(module, datamodule=make_data(folder, **data), ckpt_path=resumed)
    return module


@pytest.mark.parametrize(("settings", "data", "changed", "other_data", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_go_on_is_refused_without_a_traceback(
    tiny_model_dir, tmp_path, settings, data, changed, other_data, message
):
    run(tiny_model_dir, tmp_path, settings, data)
    with pytest.raises(ExplainedError, match=message):
        run(tiny_model_dir, tmp_path, changed, other_data, 2)


def test_an_adaptive_entropy_coefficient_begins_where_it_is_turned_on(tiny_model_dir, tmp_path):
    run(tiny_model_dir, tmp_path, {}, {})
    module = run(tiny_model_dir, tmp_path, {"use_adaptive_entropy": True, "entropy_coef": 0.5}, {}, 2)
    # Entropy is above its target of 0.2 nats: one step down.
    assert module.loss.entropy_controller.coefficient == pytest.approx(0.495)
