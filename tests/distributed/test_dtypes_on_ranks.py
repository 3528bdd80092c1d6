"""Under every strategy a policy in bfloat16 is the one that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from copy_generator import CopyGenerator
from ranks import run_ranks
from runs import make_data, make_module, make_trainer
from toy_models import save_toy_model
from transformers import AutoModelForCausalLM


def train(folder: Path, model_dir: Path, strategy: str) -> dict[str, Any]:
    module = make_module(model_dir, generator=CopyGenerator())
    trainer = make_trainer(folder, 1, devices=2, strategy=strategy, precision="bf16-true")
    trainer.fit(module, datamodule=make_data(folder, batch_size=3))
    buffers = {name: buffer.clone() for name, buffer in module.policy.named_buffers()}
    return {"buffers": buffers, "weights": {parameter.dtype for parameter in module.policy.parameters()}}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_ranks_in_bfloat16_keep_rotary_frequencies_in_float32(tmp_path, strategy):
    model_dir = save_toy_model(tmp_path / "model")
    expected = dict(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).named_buffers())
    for rank in run_ranks(2, train, tmp_path, model_dir, strategy):
        assert rank["weights"] == {torch.bfloat16}
        assert rank["buffers"].keys() == expected.keys() != set()
        assert all(torch.equal(buffer, expected[name]) for name, buffer in rank["buffers"].items())
