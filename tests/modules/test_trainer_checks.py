"""What a Trainer cannot do with these modules is refused before the policy loads, and says what to do."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch.distributed
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.trainer.connectors.logger_connector import result
from lightning.pytorch.tuner import Tuner
from ports import free_port
from runs import make_data, make_module, make_trainer, share_of_digits
from torch.utils.data import DataLoader

from grpo_lightning.errors import ExplainedError


@pytest.fixture(autouse=True)
def _advice_is_given_again() -> None:
    """Lightning gives some of it once a process."""
    result.warning_cache.clear()


@pytest.mark.parametrize(
    ("callback", "way_out"),
    [
        (StochasticWeightAveraging(0.1), "Leave it out"),
        (WeightAveraging(), "Leave it out"),
        (EMAWeightAveraging(), "Leave it out"),
        (GradientAccumulationScheduler({0: 2}), "Set data.batch_size"),
        (LearningRateFinder(), "Compare short runs"),
        (ModelPruning("l1_unstructured"), "prune what the run exports"),
        (SpikeDetection(), "Watch grad_norm"),
        (BatchSizeFinder(), "model.max_tokens_per_microbatch=auto"),
    ],
)
def test_callbacks_that_cannot_work_are_refused_before_the_policy_loads(
    callback: Callback, way_out: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    module = make_module(tiny_model_dir)
    trainer = make_trainer(tmp_path, callbacks=[callback])
    with pytest.raises(ValueError, match=rf"^trainer.callbacks: {type(callback).__name__} .*{way_out}"):
        trainer.fit(module, datamodule=make_data(tmp_path))
    assert not module.policy.is_loaded


def test_the_tuner_says_why_it_cannot_choose_a_batch_size(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="how many prompts a step learns from"):
        Tuner(make_trainer(tmp_path)).scale_batch_size(make_module(tiny_model_dir), datamodule=make_data(tmp_path))


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_a_loader_of_rows_is_answered_with_what_to_give(verb: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    rows: Any = [{"prompt": "1+1=", "ground_truth": "2"}] * 4
    run = getattr(make_trainer(tmp_path), verb)
    with pytest.raises(TypeError, match=r"batches of type dict.*trainer.fit\(module, datamodule=GRPODataModule"):
        run(make_module(tiny_model_dir), DataLoader(rows, batch_size=2))


def test_held_out_means_bring_no_advice_to_average_them_again(tiny_model_dir: Path, tmp_path: Path) -> None:
    """As in a process where vLLM has made a group of its own."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            data = make_data(tmp_path, eval_dataset=str(tmp_path / "train.jsonl"))
            make_trainer(tmp_path).validate(make_module(tiny_model_dir), datamodule=data, verbose=False)
    finally:
        torch.distributed.destroy_process_group()
    assert not [str(each.message) for each in heard if "sync_dist" in str(each.message)]


def test_checkpoints_of_steps_bring_no_advice_to_keep_the_weights_before_them(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    every_step = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_top_k=-1)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        trainer = make_trainer(tmp_path, 2, enable_checkpointing=True, callbacks=[every_step])
        trainer.fit(make_module(tiny_model_dir), datamodule=make_data(tmp_path))
    assert len(list((tmp_path / "kept").iterdir())) == 2
    assert not [str(each.message) for each in heard if "manual optimization" in str(each.message)]


class OwnSteps(BoringModel):
    """A module of somebody else that steps its optimizer itself, of which Lightning's advice is right."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.optimizers().zero_grad()
        self.manual_backward(self.step(batch))
        self.optimizers().step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.step(batch))


def failing(completions: list[str], **columns: Any) -> list[float]:
    return [float("inf")] * len(completions)


@pytest.mark.parametrize("rewards", [[share_of_digits], [failing]])
def test_other_modules_of_the_process_are_advised_as_ever(
    rewards: list[Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    with contextlib.suppress(ExplainedError):
        make_trainer(tmp_path).fit(make_module(tiny_model_dir, rewards=rewards), datamodule=make_data(tmp_path))
    every_step = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.filterwarnings("always", message="Unrelated")
            trainer = make_trainer(tmp_path, 1, enable_checkpointing=True, callbacks=[every_step])
            trainer.fit(OwnSteps())
            trainer.validate(OwnSteps(), verbose=False)
    finally:
        torch.distributed.destroy_process_group()
    said = " ".join(str(each.message) for each in heard)
    assert "Using ModelCheckpoint with manual optimization" in said
    assert "self.log('val/loss', ..., sync_dist=True)" in said


def test_no_optimizer_is_refused_when_the_module_is_made(tiny_model_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"model.optimizer=None.*Leave it out for AdamW"):
        make_module(tiny_model_dir, optimizer=None)
