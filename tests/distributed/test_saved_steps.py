"""Whichever step a run ends after, and however, what is saved then is of that step."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import make_data, make_module, make_trainer, spoilt, write_prompts


def steps_of(path: Path) -> tuple[int, int]:
    saved = torch.load(path, weights_only=True)
    return saved["global_step"], saved["steps_done"]


class FailingAfter(Callback):
    """An error once so many steps have ended; in the next one, or in the evaluation that follows the step."""

    def __init__(self, steps: int, in_evaluation: bool = False) -> None:
        self.steps, self.in_evaluation = steps, in_evaluation

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if not self.in_evaluation and pl_module.steps_done == self.steps:
            raise ArithmeticError("no memory")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self.in_evaluation and pl_module.steps_done == self.steps:
            raise ArithmeticError("no memory")


@pytest.mark.parametrize("in_evaluation", [False, True])
@pytest.mark.parametrize(
    "saving",
    [
        {"save_top_k": 0},
        {"monitor": "falling", "mode": "max"},
        {"monitor": "val/reward", "save_top_k": -1},
    ],
)
def test_save_on_exception_saves_a_step_that_was_due_and_written_nowhere(
    saving, in_evaluation, tiny_model_dir, tmp_path
):
    """It took the step for one that it had saved."""

    class Falling(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            pl_module.log("falling", -float(trainer.global_step))

    options = {"every_n_train_steps": 1, "save_on_exception": True, "auto_insert_metric_name": False}
    kept = ModelCheckpoint(tmp_path / "kept", "{step}", **options, **saving)
    failing = FailingAfter(2, in_evaluation)
    of_time = {"val_check_interval": 2 if in_evaluation else 4, "check_val_every_n_epoch": None}
    trainer = make_trainer(tmp_path, 4, callbacks=[Falling(), failing, kept], enable_checkpointing=True, **of_time)
    data = {"eval_dataset": str(write_prompts(tmp_path / "held_out.jsonl", 4))}
    with pytest.raises(ArithmeticError):
        trainer.fit(make_module(tiny_model_dir), datamodule=make_data(tmp_path, **data))
    assert steps_of(tmp_path / "kept/2.ckpt") == (2, 2)


@pytest.mark.parametrize("update", [3, 4])
def test_a_step_that_was_saved_is_not_saved_again_on_an_exception(update, tiny_model_dir, tmp_path):
    options = {"every_n_train_steps": 1, "save_on_exception": True, "save_top_k": -1}
    written: list[int] = []

    class Written(Callback):
        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
            written.append(trainer.global_step)

    kept = ModelCheckpoint(tmp_path / "kept", "{step}", **options)
    callbacks = [Written(), FailingAfter(update), kept]
    trainer = make_trainer(tmp_path, 8, callbacks=callbacks, enable_checkpointing=True)
    with pytest.raises(ArithmeticError):
        trainer.fit(make_module(tiny_model_dir), datamodule=make_data(tmp_path))
    assert written == list(range(1, update + 1))


@pytest.mark.parametrize("end", ["end", "error", "save_on_exception", "signal"])
def test_the_last_checkpoint_knows_of_steps_that_were_skipped(end, tiny_model_dir, tmp_path):
    """It was of the step before them, which a run that went on then did once more."""

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if pl_module.steps_done == 4 and end == "end":
                trainer.should_stop = True
            elif pl_module.steps_done == 4 and end == "signal":
                signal.raise_signal(signal.SIGTERM)

    keeps_last = end != "save_on_exception"
    options = {"every_n_train_steps": 1, "save_last": keeps_last, "save_on_exception": not keeps_last}
    kept = ModelCheckpoint(tmp_path / "kept", "{step}", auto_insert_metric_name=False, **options)
    callbacks = [Stop(), kept, *([] if end in ("end", "signal") else [FailingAfter(4)])]
    trainer = make_trainer(tmp_path, 8, callbacks=callbacks, enable_checkpointing=True)
    module = make_module(tiny_model_dir, optimizer=spoilt(3, 4), max_tokens_per_microbatch=10_000)
    with nullcontext() if end == "end" else pytest.raises(SystemExit if end == "signal" else ArithmeticError):
        trainer.fit(module, datamodule=make_data(tmp_path))
    assert steps_of(tmp_path / "kept" / ("last.ckpt" if keeps_last else "2.ckpt")) == (2, 4)
