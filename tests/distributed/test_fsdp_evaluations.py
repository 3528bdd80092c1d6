"""Under FSDP2, modules evaluate a checkpoint of a run with a reference without one of their own, or with the run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from copy_generator import CopyGenerator
from ranks import run_ranks
from runs import make_data, make_module, make_trainer, write_rows

from grpo_lightning import DPOModule, GRPODataModule

PAIRS = [{"prompt": f"{i}+{i}=", "chosen": f"{2 * i}", "rejected": f"<answer>{i}</answer>"} for i in range(8)]


def evaluate_grpo(folder: Path, model_dir: Path) -> list[dict[str, float]]:
    """Held-out metrics of the module that was trained, and those of a new one with its checkpoint."""
    trained, new = (make_module(model_dir, generator=CopyGenerator(), beta=0.1) for _ in range(2))
    data = make_data(folder, batch_size=2, eval_dataset=str(folder / "train.jsonl"))
    trainer = sharded(folder)
    trainer.fit(trained, datamodule=data)
    trainer.save_checkpoint(folder / "kept.ckpt")
    here = sharded(folder).validate(trained, datamodule=data, verbose=False)
    there = sharded(folder).validate(new, datamodule=data, ckpt_path=folder / "kept.ckpt", verbose=False)
    assert new.reference_passes.reference is None
    return [*here, *there]


def evaluate_dpo(folder: Path, model_dir: Path) -> list[dict[str, float]]:
    """As above, of pairs, which are compared with a reference that has moved."""
    settings: dict[str, Any] = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 0.5}
    settings |= {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)}
    trained, new = (DPOModule(model_name_or_path=str(model_dir), **settings) for _ in range(2))
    rows = str(folder / "pairs.jsonl")
    data = GRPODataModule(dataset=rows, eval_dataset=rows, converter="dpo", batch_size=2)
    trainer = sharded(folder)
    trainer.fit(trained, datamodule=data)
    trainer.save_checkpoint(folder / "kept.ckpt")
    here = sharded(folder).validate(trained, datamodule=data, verbose=False)
    there = sharded(folder).validate(new, datamodule=data, ckpt_path=folder / "kept.ckpt", verbose=False)
    return [*here, *there]


def sharded(folder: Path) -> Any:
    return make_trainer(folder, 2, devices=2, strategy="fsdp2")


@pytest.mark.parametrize("evaluate", [evaluate_grpo, evaluate_dpo])
def test_a_checkpoint_of_a_sharded_run_is_evaluated_as_the_module_that_wrote_it(evaluate, tiny_model_dir, tmp_path):
    make_data(tmp_path)
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    for trained, new in run_ranks(2, evaluate, tmp_path, tiny_model_dir):
        assert new == pytest.approx(trained, rel=1e-5) and len(new) > 0
        if evaluate is evaluate_dpo:
            assert new["val/loss"] != pytest.approx(0.6931, abs=1e-4)  # of no difference at all
