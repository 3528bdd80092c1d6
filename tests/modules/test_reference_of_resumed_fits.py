"""A module that has been trained, and goes on from a checkpoint in the same process, keeps the reference it started from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import make_data, make_module, make_trainer, weights, write_rows

from grpo_lightning import DPOModule, GRPODataModule, GRPOModule


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


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_an_evaluation_of_a_checkpoint_from_before_a_move_leaves_the_reference_as_it_is(
    verb: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    module = make_module(tiny_model_dir, beta=0.1, sync_ref_model=True, ref_model_sync_steps=2)
    kept = checkpoint_of(module, tmp_path, 1)
    then = weights(module)
    make_trainer(tmp_path, 2).fit(module, datamodule=make_data(tmp_path), ckpt_path=kept)
    reference = module.reference_passes.reference
    assert reference is not None
    moved = {name: parameter.clone() for name, parameter in reference.model.named_parameters()}
    rows = str(tmp_path / "train.jsonl")
    data = make_data(tmp_path, eval_dataset=rows, test_dataset=rows)
    getattr(make_trainer(tmp_path), verb)(module, datamodule=data, ckpt_path=kept, verbose=False)
    torch.testing.assert_close(weights(module), then, rtol=0, atol=0)
    assert module.reference_passes.reference is reference
    torch.testing.assert_close(dict(reference.model.named_parameters()), moved, rtol=0, atol=0)
    with pytest.raises(ValueError, match="The reference has moved since this checkpoint"):
        make_trainer(tmp_path, 2).fit(module, datamodule=make_data(tmp_path), ckpt_path=kept)


def test_an_evaluation_of_preferences_from_before_a_move_says_that_they_are_compared_with_what_moved(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    pairs = [{"prompt": f"{i}+{i}=", "chosen": f"{2 * i}", "rejected": f"<answer>{i}</answer>"} for i in range(6)]
    rows = write_rows(tmp_path / "pairs.jsonl", pairs)
    data = GRPODataModule(dataset=rows, eval_dataset=rows, converter="dpo", batch_size=3)
    moves = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 1.0}
    module = DPOModule(
        model_name_or_path=str(tiny_model_dir),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        max_grad_norm=0.0,
        **moves,
    )
    trainer = make_trainer(tmp_path, 1)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    make_trainer(tmp_path, 2).fit(module, datamodule=data, ckpt_path=tmp_path / "kept.ckpt")
    with pytest.warns(UserWarning, match=r"The reference has moved since this checkpoint.*the one of now"):
        (seen,) = make_trainer(tmp_path).validate(
            module, datamodule=data, ckpt_path=tmp_path / "kept.ckpt", verbose=False
        )
    assert seen["val/rewards/chosen"] != 0
    with pytest.raises(ValueError, match="The reference has moved since this checkpoint"):
        make_trainer(tmp_path, 2).fit(module, datamodule=data, ckpt_path=tmp_path / "kept.ckpt")
