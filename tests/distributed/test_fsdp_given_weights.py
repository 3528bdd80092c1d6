"""Weights that are given before a policy loads are what shards, and the reference beside them, start from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from copy_generator import CopyGenerator
from ranks import run_ranks
from runs import fit, make_data, make_module, make_trainer, weights
from torch import Tensor

from grpo_lightning.distributed.sharding import is_sharded, whole


def start(folder: Path, model_dir: Path, of_shards: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Policy and reference of a fit without steps, which starts from a file's weights, or those of another module's shards."""
    given = torch.load(folder / "given.pt", weights_only=True)
    for _ in range(2 if of_shards else 1):
        module = make_module(model_dir, generator=CopyGenerator(), beta=0.1)
        module.load_state_dict(given)
        data = make_data(folder)
        make_trainer(folder, 0, devices=2, strategy="fsdp2").fit(module, datamodule=data)
        given = module.state_dict()
    reference = module.reference_passes.reference
    assert reference is not None and is_sharded(module.policy.model) and is_sharded(reference.model)
    policy, other = (
        {name: whole(p.detach()) for name, p in each.named_parameters()}
        for each in (module.policy.model, reference.model)
    )
    return policy, other


@pytest.mark.parametrize("of_shards", [False, True])
def test_shards_start_from_the_weights_that_a_module_was_given(of_shards, tiny_model_dir, tmp_path):
    trained = fit(tiny_model_dir, tmp_path)
    torch.save(trained.state_dict(), tmp_path / "given.pt")
    for policy, reference in run_ranks(2, start, tmp_path, tiny_model_dir, of_shards):
        torch.testing.assert_close(policy, weights(trained), rtol=0, atol=0)
        torch.testing.assert_close(reference, weights(trained), rtol=0, atol=0)
