"""LoRA steps are the same on one rank and on two, reference and new token rows included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from runs import make_data, make_module, make_trainer

SETTINGS: dict[str, Any] = {
    "finetuning_type": "lora",
    "lora_dropout": 0.0,
    "beta": 0.1,
    "init_special_tokens": True,
    "new_special_tokens_config": {"<back>": "answer"},
    "max_tokens_per_microbatch": 40,
}


def train(folder: Path, model_dir: Path, ranks: int, moves: bool) -> dict[str, torch.Tensor]:
    """Three steps; the trained weights of this rank."""
    module = make_module(model_dir, sync_ref_model=moves, ref_model_sync_steps=2, **SETTINGS)
    trainer = make_trainer(folder, 3, devices=ranks, strategy="ddp" if ranks > 1 else "auto")
    trainer.fit(module, datamodule=make_data(folder / "data", batch_size=4 // ranks))
    return {name: p.detach().clone() for name, p in module.policy.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("moves", [False, True], ids=["adapters off", "moving reference"])
def test_adapters_and_token_rows_do_not_depend_on_the_number_of_ranks(tiny_model_dir, tmp_path, moves):
    (tmp_path / "data").mkdir()
    (alone,) = run_ranks(1, train, tmp_path, tiny_model_dir, 1, moves)
    first, second = run_ranks(2, train, tmp_path, tiny_model_dir, 2, moves)
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    assert sum("trainable_tokens_delta" in name for name in alone) == 2
