"""A real Trainer that is stopped anywhere and resumed sees the prompts of an uninterrupted run, no more and no fewer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from recorder import BatchRecorder
from runs import make_trainer

from grpo_lightning.datamodules import GRPODataModule
from grpo_lightning.types import PromptBatch

ROWS = [{"prompt": f"question {index}"} for index in range(11)]  # 5 batches of 2 an epoch, one row left out of each


class Recorder(BatchRecorder):
    """Notes what it was validated on, too."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__(fail_at)
        self.validated: list[int] = []

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.validated.extend(batch.uids)


def fit(directory: Path, module: Recorder, ckpt_path: str | None = None, rows: Any = ROWS, **trainer: Any) -> Recorder:
    """Trains for 3 epochs unless told otherwise, with a checkpoint after every step."""
    validate = trainer.pop("validate", False)
    batch_size = trainer.pop("batch_size", 2)
    data = GRPODataModule(rows, eval_dataset=ROWS[:3] if validate else None, batch_size=batch_size, seed=4)
    save = ModelCheckpoint(directory, every_n_train_steps=1, save_top_k=-1, save_last=True, filename="{step}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        callbacks = [save, *trainer.pop("callbacks", [])]
        settings = {"max_epochs": 3, "max_steps": -1} | trainer
        make_trainer(directory, callbacks=callbacks, enable_checkpointing=True, **settings).fit(
            module, data, ckpt_path=ckpt_path, weights_only=False
        )
    return module


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 5, 6, 10, 14])  # inside epochs and at both borders
def test_a_run_stopped_after_any_step_resumes_with_the_prompts_that_were_left(
    steps: int, validate: bool, tmp_path: Path
) -> None:
    whole = fit(tmp_path / "whole", Recorder(), validate=validate)
    assert len(whole.seen) == 15
    first = fit(tmp_path / "parts", Recorder(), max_steps=steps, max_epochs=-1, validate=validate)
    assert first.seen == whole.seen[:steps]
    second = fit(tmp_path / "parts", Recorder(), ckpt_path=str(tmp_path / "parts" / "last.ckpt"), validate=validate)
    assert second.seen == whole.seen[steps:]
    assert torch.equal(second.weight, whole.weight)


@pytest.mark.parametrize("step", range(1, 15))
def test_every_checkpoint_of_an_uninterrupted_run_continues_where_it_was_written(step: int, tmp_path: Path) -> None:
    whole = fit(tmp_path, Recorder(), validate=True)
    resumed = fit(tmp_path / "on", Recorder(), ckpt_path=str(tmp_path / f"step={step}.ckpt"), validate=True)
    assert resumed.seen == whole.seen[step:]
    assert torch.equal(resumed.weight, whole.weight)


@pytest.mark.parametrize("fail_at", [1, 2, 5, 7])
def test_a_step_that_failed_is_repeated_after_a_resume(fail_at: int, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", Recorder())
    rescue = ModelCheckpoint(tmp_path / "parts", save_on_exception=True, filename="rescue")
    broken = Recorder(fail_at=fail_at)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        fit(tmp_path / "parts", broken, callbacks=[rescue])
    assert broken.seen == whole.seen[:fail_at]
    resumed = fit(tmp_path / "resumed", Recorder(), ckpt_path=str(tmp_path / "parts" / "rescue.ckpt"))
    assert resumed.seen == whole.seen[fail_at:]


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_an_epoch_shortened_by_the_trainer_is_resumed_exactly(step: int, tmp_path: Path) -> None:
    whole = fit(tmp_path, Recorder(), limit_train_batches=2)
    assert len(whole.seen) == 6
    resumed = fit(tmp_path / "on", Recorder(), ckpt_path=str(tmp_path / f"step={step}.ckpt"), limit_train_batches=2)
    assert resumed.seen == whole.seen[step:]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7])
def test_validation_inside_an_epoch_does_not_move_the_training_prompts(step: int, tmp_path: Path) -> None:
    plain = fit(tmp_path / "plain", Recorder())
    whole = fit(tmp_path, Recorder(), validate=True, val_check_interval=2)
    assert whole.seen == plain.seen
    path = str(tmp_path / f"step={step}.ckpt")
    assert (
        fit(tmp_path / "on", Recorder(), ckpt_path=path, validate=True, val_check_interval=2).seen == whole.seen[step:]
    )


def test_epochs_have_different_orders_and_leave_out_the_incomplete_batch(tmp_path: Path) -> None:
    seen = fit(tmp_path, Recorder()).seen
    epochs = [[uid for batch in seen[start : start + 5] for uid in batch] for start in (0, 5, 10)]
    assert [len(set(epoch)) for epoch in epochs] == [10, 10, 10]
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_resume_inside_an_epoch_with_another_global_batch_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, Recorder(), max_steps=2, max_epochs=-1)
    with pytest.raises(ValueError, match=r"inside epoch 0.*data.batch_size times devices was 2 and is 3"):
        fit(tmp_path, Recorder(), ckpt_path=str(tmp_path / "last.ckpt"), batch_size=3)


def said_at_a_resume(rows: Any, step: int, folder: Path) -> list[str]:
    """Warnings of a run that goes on for one step from ``step=N.ckpt`` of the folder, on these rows."""
    data = GRPODataModule(rows, batch_size=2, seed=4)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=step + 1,
        default_root_dir=str(folder / "resumed"), use_distributed_sampler=False,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(Recorder(), datamodule=data, ckpt_path=str(folder / f"step={step}.ckpt"), weights_only=False)
    return [str(warning.message) for warning in said]


@pytest.mark.parametrize(
    ("step", "rows", "is_said"),
    [(3, ROWS, False), (3, ROWS[::-1], True), (3, [*ROWS[:-1], {"prompt": "another"}], True), (5, ROWS[::-1], False)],
    ids=["the same", "reversed", "one changed", "at the end of an epoch"],
)
def test_a_resume_inside_an_epoch_of_other_prompts_is_said(step: int, rows: Any, is_said: bool, tmp_path: Path) -> None:
    fit(tmp_path, Recorder(), max_steps=step)
    said = said_at_a_resume(rows, step, tmp_path)
    assert any("have other tokens, or another order" in line for line in said) == is_said


def with_answers(*answers: Any) -> list[dict[str, Any]]:
    return [row | {"answer": answers[index % len(answers)], "level": index} for index, row in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("step", "rows", "is_said"),
    [
        (3, with_answers("1", {"a": [2.0, None]}, object()), False),  # another object, whose address is no answer
        (3, with_answers("1", {"a": [2.5, None]}, object()), True),
        (3, [{name: row[name] for name in ("prompt", "level")} for row in with_answers(1)], True),
        (5, with_answers("7"), False),
    ],
    ids=["the same", "one changed", "left out", "at the end of an epoch"],
)
def test_a_resume_inside_an_epoch_of_other_answers_is_said(step: int, rows: Any, is_said: bool, tmp_path: Path) -> None:
    fit(tmp_path, Recorder(), max_steps=step, rows=with_answers("1", {"a": [2.0, None]}, object()))
    said = said_at_a_resume(rows, step, tmp_path)
    assert any("other values in answer. What is drawn from here on" in line for line in said) == is_said


def test_overfitting_on_a_few_batches_repeats_the_same_ones(tmp_path: Path) -> None:
    assert fit(tmp_path, Recorder(), overfit_batches=2).seen == [[0, 1], [2, 3]] * 3
