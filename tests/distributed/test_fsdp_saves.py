"""Checkpoints of FSDP2 that cannot be written, or have changed: every rank ends with what to do, and nothing half is left."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest
from copy_generator import CopyGenerator
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import run_ranks
from runs import make_data, make_module, make_trainer

from grpo_lightning.distributed.checkpoint_check import CheckpointNotReadableError
from grpo_lightning.distributed.checkpoint_io import CheckpointNotWrittenError
from grpo_lightning.distributed.strategies import FSDP2Strategy


class FullDisk(Callback):
    """From the second step on, this rank can write no file of more than so many bytes."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 2 and trainer.global_rank == self.rank:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def fit(folder: Path, model_dir: Path, in_one_file: bool, callbacks: list[Any], ckpt: Path | None = None) -> str:
    """What two steps, or further ones, end with."""
    saves = ModelCheckpoint(folder / "checkpoints", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    strategy = FSDP2Strategy(save_distributed_checkpoint=not in_one_file)
    all_of_them = {"callbacks": [*callbacks, saves], "enable_checkpointing": True}
    trainer = make_trainer(folder, 3 if ckpt else 2, devices=2, strategy=strategy, **all_of_them)
    module = make_module(model_dir, generator=CopyGenerator())
    try:
        trainer.fit(module, datamodule=make_data(folder, batch_size=2), ckpt_path=ckpt, weights_only=False)
    except (CheckpointNotWrittenError, CheckpointNotReadableError) as error:
        return str(error)
    return ""


def full(folder: Path, model_dir: Path, rank: int) -> str:
    return fit(folder, model_dir, False, [FullDisk(rank)])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_cannot_write_ends_all_with_what_to_do(rank, tiny_model_dir, tmp_path):
    for said in run_ranks(2, full, tmp_path, tiny_model_dir, rank):
        assert said.startswith(f"The checkpoint {tmp_path}/checkpoints/step=2.ckpt could not be written (")
        assert f"then go on with --ckpt_path '{tmp_path}/checkpoints/step=1.ckpt'" in said
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step=1.ckpt"]


def in_one_file(folder: Path, model_dir: Path) -> list[str]:
    said = [fit(folder, model_dir, True, [])]
    path = folder / "checkpoints" / "step=2.ckpt"
    if said[0] == "" and os.environ["LOCAL_RANK"] == "0":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    return [*said, fit(folder, model_dir, True, [], path)]


def test_the_whole_in_one_file_is_checked_before_anything_goes_on_from_it(tiny_model_dir, tmp_path):
    for first, second in run_ranks(2, in_one_file, tmp_path, tiny_model_dir):
        assert first == ""
        assert "its contents have changed since they were written" in second and "step=1.ckpt" in second
