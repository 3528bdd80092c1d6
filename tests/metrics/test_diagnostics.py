"""A diagnostic that cannot be written is left out, with a word, and leaves no half file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from peft import LoraConfig
from runs import fit, make_data, make_trainer

from grpo_lightning.callbacks import CompletionWriter, HuggingFaceExport, SystemRecord
from grpo_lightning.commands.cli import with_own_loggers
from grpo_lightning.distributed.checkpoint_io import AtomicCheckpointIO
from grpo_lightning.errors import ExplainedError
from grpo_lightning.metrics.diagnostics import LenientCSVLogger, LenientTensorBoardLogger


class InTheWay(Callback):
    """Puts a file where a folder was, before the first step: writes below it fail, as on a disk that is full or gone."""

    def __init__(self, *folders: Path) -> None:
        self.folders = folders

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        for folder in self.folders if batch_idx == 0 else ():
            shutil.rmtree(folder, ignore_errors=True)
            folder.touch()


def test_a_run_trains_on_without_the_diagnostics_that_cannot_be_written(tiny_model_dir, tmp_path):
    csv = LenientCSVLogger(tmp_path, flush_logs_every_n_steps=1)
    closed = [tmp_path / "completions", Path(csv.log_dir)]
    watching = {"callbacks": [CompletionWriter(), InTheWay(*closed)], "logger": csv, "log_every_n_steps": 1}
    with pytest.warns(UserWarning, match=r"could not be written .* and is left out; training goes on") as told:
        module = fit(tiny_model_dir, tmp_path, max_steps=2, trainer=watching)
    assert module.steps_done == 2
    assert len([one for one in told if "is left out" in str(one.message)]) == 2  # once for each folder
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]


def test_tensorboard_whose_folder_is_gone_ends_nothing(tmp_path):
    """Lightning turns whatever a writer raises into a ValueError about the value, which ended the run."""
    board = LenientTensorBoardLogger(tmp_path, version=0)
    board.log_metrics({"reward": 1.0}, step=1)
    board.save()
    board.experiment.file_writer.event_writer._async_writer.write = gone
    with pytest.warns(UserWarning, match="is left out; training goes on"):
        board.log_metrics({"reward": 2.0}, step=2)
    with pytest.raises(ValueError, match="you tried to log"):
        board.log_metrics({"reward": object()}, step=3)


def gone(data: bytes) -> None:
    raise FileNotFoundError(2, "No such file or directory")


def test_diagnostics_that_cannot_be_written_from_the_start_end_nothing(tiny_model_dir, tmp_path):
    (tmp_path / "completions").touch()
    (tmp_path / "system.json").mkdir()
    with pytest.warns(UserWarning, match="is left out"):
        module = fit(tiny_model_dir, tmp_path, trainer={"callbacks": [CompletionWriter(), SystemRecord()]})
    assert module.steps_done == 1


def test_an_export_that_fails_says_what_to_do_and_the_checkpoint_is_there(tiny_model_dir, tmp_path):
    (tmp_path / "a_file").touch()
    save = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=100)
    ending = {"callbacks": [HuggingFaceExport(str(tmp_path / "a_file/x")), save], "enable_checkpointing": True}
    with pytest.raises(OSError, match=r"could not be written .* `python -m grpo_lightning export RUN_DIR"):
        fit(tiny_model_dir, tmp_path, max_steps=2, trainer=ending)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["steps_done"] == 2


def test_where_the_last_checkpoint_cannot_be_written_the_export_is_made_all_the_same(tiny_model_dir, tmp_path):
    (tmp_path / "a_file").touch()
    save = ModelCheckpoint(tmp_path / "a_file" / "x", save_last=True, every_n_train_steps=100)
    ending = {
        "callbacks": [HuggingFaceExport(), save],
        "enable_checkpointing": True,
        "plugins": [AtomicCheckpointIO()],
    }
    modules: list[Any] = []
    with pytest.raises(OSError, match=r"last.ckpt could not be written .* There is no earlier one. Free disk space"):
        fit(tiny_model_dir, tmp_path, max_steps=2, trainer=ending, on_module=modules.append)
    assert (tmp_path / "hf/last/model.safetensors").exists()
    make_trainer(tmp_path, 1).fit(modules[0], datamodule=make_data(tmp_path))  # another fit says nothing of it
    assert modules[0].steps_done == 3


def test_a_bias_that_cannot_be_merged_is_refused_before_the_first_step(tiny_model_dir, tmp_path):
    finetuning = {"finetuning_type": "lora", "peft_config": LoraConfig(lora_bias=True, target_modules=["o_proj"])}
    with pytest.raises(ExplainedError, match=r"lora_bias: true gives .*o_proj a bias, which the layer"):
        fit(tiny_model_dir, tmp_path, trainer={"callbacks": [HuggingFaceExport()]}, **finetuning)


def test_two_processes_that_start_together_in_one_folder_log_into_folders_of_their_own(tmp_path):
    fit_loggers, validate_loggers = (with_own_loggers(None, str(tmp_path)) for _ in range(2))  # before either writes
    assert not (tmp_path / "logs").exists()
    board = validate_loggers[1].log_dir
    assert Path(board).is_dir() and board == validate_loggers[0].log_dir
    assert [logger.log_dir for logger in fit_loggers] == [str(tmp_path / "logs" / "version_1")] * 2
    for loggers, value in ((fit_loggers, 1.0), (validate_loggers, 2.0), (fit_loggers, 3.0)):
        loggers[0].log_metrics({"reward": value}, step=0)
        loggers[0].save()
    lines = [(tmp_path / "logs" / f"version_{number}" / "metrics.csv").read_text().split() for number in (1, 0)]
    assert lines == [["reward,step", "1.0,0", "3.0,0"], ["reward,step", "2.0,0"]]
    (chosen,) = with_own_loggers([LenientCSVLogger(tmp_path, name="logs", version="mine")], str(tmp_path))[1:]
    assert chosen.log_dir == str(tmp_path / "logs" / "mine")


def test_a_version_is_taken_by_name_alone_where_its_folder_cannot_be_made(tmp_path):
    (tmp_path / "logs").touch()
    assert LenientCSVLogger(tmp_path, name="logs").log_dir == str(tmp_path / "logs" / "version_0")
