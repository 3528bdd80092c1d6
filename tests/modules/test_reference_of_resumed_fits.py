"""A module that has been trained, and goes on from a checkpoint in the same process, keeps the reference it started from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import make_data, make_module, make_trainer, weights

from grpo_lightning import GRPOModule


def checkpoint_of(module: GRPOModule, folder: Path, max_steps: int, **settings: Any) -> Path:
    trainer = make_trainer(folder, max_steps, **settings)
    trainer.fit(module, datamodule=make_data(folder))
    trainer.save_checkpoint(folder / "kept.ckpt")
    return folder / "kept.ckpt"


def test_a_second_fit_of_a_module_compares_with_the_weights_before_the_first(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    module, again, start = (make_module(tiny_model_dir, beta=0.1) for _ in range(3))
    start.configure_model()
    kept = checkpoint_of(module, tmp_path, 1)
    for each in (module, again):
        make_trainer(tmp_path, 2).fit(each, datamodule=make_data(tmp_path), ckpt_path=kept)
        reference = each.reference_passes.reference
        assert reference is not None
        torch.testing.assert_close(dict(reference.model.named_parameters()), weights(start), rtol=0, atol=0)
    assert module.step_metrics["kl"] == pytest.approx(again.step_metrics["kl"]) and module.step_metrics["kl"] > 0


def test_a_reference_that_has_moved_does_not_go_back_to_a_checkpoint_without_it(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    module = make_module(tiny_model_dir, beta=0.1, sync_ref_model=True, ref_model_sync_steps=2)
    kept = checkpoint_of(module, tmp_path, 1)
    make_trainer(tmp_path, 2).fit(module, datamodule=make_data(tmp_path), ckpt_path=kept)
    with pytest.raises(ValueError, match=r"The reference has moved since this checkpoint.*Make the module again"):
        make_trainer(tmp_path, 2).fit(module, datamodule=make_data(tmp_path), ckpt_path=kept)
