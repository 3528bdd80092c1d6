"""Evaluations by the clock come after the same step on all ranks, whatever the clock of each says."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from ranks import run_ranks
from runs import make_data, make_module, make_trainer, write_prompts


class Early(Callback):
    """One rank counts from an hour before the others do; notes when it evaluates."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.evaluated: list[int] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_rank == self.rank:
            trainer._last_val_time -= 3600

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.evaluated.append(trainer.global_step)


def fit(folder: Path, model_dir: Path, ranks: int, early: int, ckpt: Path | None = None) -> list[int]:
    callback = Early(early)
    trainer = make_trainer(
        folder,
        3,
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        callbacks=[callback],
        val_check_interval={"minutes": 30},
        check_val_every_n_epoch=None,
    )
    data = make_data(folder, eval_dataset=str(folder / "held_out.jsonl"))
    module = make_module(model_dir)
    evaluate = module.validation_step

    @wraps(evaluate)
    def saving(*args: Any) -> None:
        trainer.save_checkpoint(folder / "inside.ckpt")
        evaluate(*args)

    module.validation_step = saving
    trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return callback.evaluated


@pytest.mark.parametrize(("ranks", "early", "expected"), [(1, 0, [1]), (2, 0, [1]), (2, 1, [])])
def test_the_first_rank_says_when_it_is_time(ranks, early, expected, tiny_model_dir, tmp_path):
    write_prompts(tmp_path / "train.jsonl")
    write_prompts(tmp_path / "held_out.jsonl", 4)
    assert run_ranks(ranks, fit, tmp_path, tiny_model_dir, ranks, early) == [expected] * ranks


@pytest.mark.parametrize(("ranks", "early"), [(1, 1), (2, 0), (2, 1)])
def test_an_evaluation_that_a_checkpoint_was_written_in_is_ended_by_all_ranks(ranks, early, tiny_model_dir, tmp_path):
    """Each rank asked its own clock, and waited for the others; one alone dropped the evaluation."""
    write_prompts(tmp_path / "train.jsonl")
    write_prompts(tmp_path / "held_out.jsonl", 4)
    assert run_ranks(ranks, fit, tmp_path, tiny_model_dir, ranks, 0) == [[1]] * ranks
    assert run_ranks(ranks, fit, tmp_path, tiny_model_dir, ranks, early, tmp_path / "inside.ckpt") == [[1]] * ranks
