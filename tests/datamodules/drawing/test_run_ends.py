"""Whatever ends a run, the run that goes on from its last checkpoint sees the prompts that were left, and no others."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from recorder import BatchRecorder
from runs import make_trainer

from grpo_lightning.datamodules import GRPODataModule
from grpo_lightning.distributed.last_checkpoint import LastCheckpoint
from grpo_lightning.distributed.rank_watch import RankWatch
from grpo_lightning.types import PromptBatch

ROWS = [{"prompt": f"question {index}"} for index in range(11)]  # 5 batches of 2 an epoch
STEPS = 13


class Recorder(BatchRecorder):
    """Keeps its last checkpoint, and is never better than before."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__(fail_at)
        self.last_checkpoint = LastCheckpoint(RankWatch())

    def configure_callbacks(self) -> list[Callback]:
        return [self.last_checkpoint]

    def loss(self, batch: PromptBatch) -> torch.Tensor:
        return (1 + self.global_step) * super().loss(batch)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.log("score", 1.0, batch_size=1)  # never better: EarlyStopping counts


class StopAfter(Callback):
    """Asks for the end as max_time does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.should_stop |= trainer.global_step == self.step


def fit(folder: Path, go_on: bool = False, fail_at: int | None = None, streaming: bool = False, **trainer: Any) -> Any:
    """Trains for 13 steps unless told otherwise; checkpoints come every 100, so the last is that of the end."""
    module = Recorder(fail_at)
    settings = {"streaming": True, "shuffle_block": 5} if streaming else {}
    data = GRPODataModule(ROWS, eval_dataset=ROWS[:2], batch_size=2, seed=4, **settings)
    save = ModelCheckpoint(folder, every_n_train_steps=100, save_last=True, enable_version_counter=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        callbacks = [save, *trainer.pop("callbacks", [])]
        settings = {"max_steps": STEPS} | trainer
        make_trainer(folder, callbacks=callbacks, enable_checkpointing=True, **settings).fit(
            module, data, ckpt_path=str(folder / "last.ckpt") if go_on else None, weights_only=True
        )
    return module


def by_max_steps(step: int) -> dict[str, Any]:
    return {"max_steps": step}


def by_max_time(step: int) -> dict[str, Any]:
    return {"callbacks": [StopAfter(step)]}


def by_error(step: int) -> dict[str, Any]:
    return {"fail_at": step}


def by_early_stopping(step: int) -> dict[str, Any]:
    stopping = EarlyStopping("score", patience=1, mode="max")  # at the second evaluation
    return {"callbacks": [stopping], "val_check_interval": step // 2, "check_val_every_n_epoch": None}


@pytest.fixture(scope="module", params=[False, True], ids=["rows", "stream"])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, Recorder]:
    """Whether the data is a stream, and the run that nothing ended."""
    return request.param, fit(tmp_path_factory.mktemp("whole"), streaming=request.param)


ENDS = [by_max_steps, by_max_time, by_error, by_early_stopping]


@pytest.mark.parametrize("end", ENDS)
def test_a_run_that_ended_goes_on_as_if_it_had_not(
    end: Callable[..., Any], undisturbed: tuple[bool, Recorder], tmp_path: Path
) -> None:
    streaming, whole = undisturbed
    assert len(whole.seen) == STEPS
    for step in (2, 4, 10, 12):  # inside epochs and at their border
        folder = tmp_path / str(step)
        if end is by_error:
            with pytest.raises(RuntimeError, match="the machine is gone"):
                fit(folder, streaming=streaming, **end(step))
        else:
            first = fit(folder, streaming=streaming, **end(step))
            assert first.seen == whole.seen[:step]
        second = fit(folder, go_on=True, streaming=streaming)
        assert second.seen == whole.seen[step:], step
        assert torch.equal(second.weight, whole.weight)


def test_a_run_that_is_ended_and_continued_again_and_again_loses_nothing(
    undisturbed: tuple[bool, Recorder], tmp_path: Path
) -> None:
    streaming, whole = undisturbed
    seen = []
    for step in (1, 3, 5, 6, 8, 10, 11, STEPS):
        part = fit(tmp_path / "parts", go_on=step > 1, streaming=streaming, max_steps=step)
        seen += part.seen
        assert torch.load(tmp_path / "parts/last.ckpt", weights_only=True)["global_step"] == step
    assert seen == whole.seen
    assert torch.equal(part.weight, whole.weight)


def test_epochs_as_a_limit_are_raised_without_a_gap(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", max_steps=-1, max_epochs=2)
    first = fit(tmp_path / "parts", max_steps=-1, max_epochs=1)
    second = fit(tmp_path / "parts", go_on=True, max_steps=-1, max_epochs=2)
    assert first.seen + second.seen == whole.seen
    assert torch.equal(second.weight, whole.weight)


@pytest.mark.parametrize("evaluates", [False, True])
@pytest.mark.parametrize("step", [2, 5, 7])
def test_a_checkpoint_that_is_saved_after_the_fit_is_at_the_place_where_its_last_step_left_off(
    undisturbed: tuple[bool, Recorder], tmp_path: Path, step: int, evaluates: bool
) -> None:
    streaming, whole = undisturbed
    first = fit(tmp_path, streaming=streaming, max_steps=step)
    (tmp_path / "last.ckpt").unlink()
    if evaluates:
        first.trainer.validate(first, first.trainer.datamodule, verbose=False)
    first.trainer.save_checkpoint(tmp_path / "last.ckpt")
    second = fit(tmp_path, go_on=True, streaming=streaming)
    assert second.seen == whole.seen[step:]
    assert torch.equal(second.weight, whole.weight)


def test_a_checkpoint_after_an_evaluation_by_another_trainer_has_nothing_of_the_fits_place(tmp_path: Path) -> None:
    module = fit(tmp_path, max_steps=2)
    other = L.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_progress_bar=False)
    other.validate(module, GRPODataModule(ROWS, eval_dataset=ROWS[:2], batch_size=2), verbose=False)
    other.save_checkpoint(tmp_path / "other.ckpt")
    saved = torch.load(tmp_path / "other.ckpt", weights_only=True)
    assert saved["global_step"] == saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 0
