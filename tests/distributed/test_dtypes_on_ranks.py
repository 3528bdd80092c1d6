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
    buffers = {name: buffer.clone() for name, buffer in module.policy.model.named_buffers()}
    return {"buffers": buffers, "weights": {parameter.dtype for parameter in module.policy.model.parameters()}}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_ranks_in_bfloat16_keep_rotary_frequencies_in_float32(tmp_path, strategy):
    model_dir = save_toy_model(tmp_path / "model")
    expected = dict(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).named_buffers())
    for rank in run_ranks(2, train, tmp_path, model_dir, strategy):
        assert rank["weights"] == {torch.bfloat16}
        assert rank["buffers"].keys() == expected.keys() != set()
        assert all(torch.equal(buffer, expected[name]) for name, buffer in rank["buffers"].items())


def train_with_reference(folder: Path, model_dir: Path, ranks: int) -> dict[str, Any]:
    module = make_module(model_dir, generator=CopyGenerator(), beta=0.1, ref_model_dtype="bfloat16")
    trainer = make_trainer(folder, 1, devices=ranks, strategy="fsdp2" if ranks > 1 else "auto")
    trainer.fit(module, datamodule=make_data(folder, batch_size=6 // ranks))
    reference = module.reference_passes.reference.model
    dtypes = [{tensor.dtype for tensor in tensors} for tensors in (reference.parameters(), reference.buffers())]
    return {"kl": module.step_metrics["kl"], "dtypes": dtypes}


def test_a_sharded_reference_is_held_in_the_dtype_that_was_asked_for(tmp_path):
    """Set past FSDP, the dtype had no effect: the reference scored as the policy does, with a KL of exactly 0."""
    model_dir = save_toy_model(tmp_path / "model")
    (alone,) = run_ranks(1, train_with_reference, tmp_path, model_dir, 1)
    assert alone["kl"] > 0  # rounding of the weights
    for rank in (alone, *run_ranks(2, train_with_reference, tmp_path, model_dir, 2)):
        assert rank["dtypes"] == [{torch.bfloat16}, {torch.float32}]
        assert rank["kl"] == pytest.approx(alone["kl"], rel=0.01)
