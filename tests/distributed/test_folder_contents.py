"""Checkpoints that are directories, of somebody else: whatever they name is data, and no code runs."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from copy_generator import CopyGenerator
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import run_ranks
from runs import make_data, make_module, make_trainer
from torch.distributed.checkpoint import save

from grpo_lightning.distributed.checkpoint_check import CheckpointNotReadableError
from grpo_lightning.distributed.folder_contents import contents_fault, read_into


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def written(folder: Path) -> Path:
    state = {"weight": torch.arange(4.0), "lr": 0.5, "betas": (0.9, 0.99), "fused": None, "kept": torch.bfloat16}
    save(state, checkpoint_id=folder, no_dist=True)
    return folder


def wanted() -> dict[str, Any]:
    return {"weight": torch.zeros(4), "lr": 0.0, "betas": (0.0, 0.0), "fused": True, "kept": torch.float32}


def test_tensors_and_values_come_back(tmp_path):
    folder, state = written(tmp_path / "step.ckpt"), wanted()
    assert contents_fault(folder) is None
    read_into(state, folder)
    assert state.pop("weight").tolist() == [0.0, 1.0, 2.0, 3.0]
    assert state == {"lr": 0.5, "betas": (0.9, 0.99), "fused": None, "kept": torch.bfloat16}


def test_code_in_the_list_of_contents_does_not_run(tmp_path):
    folder = written(tmp_path / "step.ckpt")
    contents = pickle.loads((folder / ".metadata").read_bytes())
    contents.planner_data["more"] = Payload(tmp_path / "it ran")
    (folder / ".metadata").write_bytes(pickle.dumps(contents))
    assert "posix.mkdir, which is no part of a checkpoint" in str(contents_fault(folder))
    with pytest.raises(CheckpointNotReadableError, match=r"posix\.mkdir"):
        read_into(wanted(), folder)
    assert not (tmp_path / "it ran").exists()


def test_code_in_a_value_does_not_run(tmp_path):
    folder = tmp_path / "step.ckpt"
    save(wanted() | {"lr": Payload(tmp_path / "it ran")}, checkpoint_id=folder, no_dist=True)
    assert contents_fault(folder) is None
    with pytest.raises(CheckpointNotReadableError, match="cannot be used"):
        read_into(wanted(), folder)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({})], ids=["empty", "text", "another"])
def test_what_is_no_list_of_contents_is_a_fault(tmp_path, content):
    folder = written(tmp_path / "step.ckpt")
    (folder / ".metadata").write_bytes(content)
    assert ".metadata is not what was written" in str(contents_fault(folder))


def fit(folder: Path, model_dir: Path, foreign: list[Path]) -> list[str]:
    """A sharded step; then what every rank says of copies with a payload, and a second step out of the checkpoint itself."""

    def trained(steps: int, ckpt: Path | None) -> None:
        module = make_module(model_dir, generator=CopyGenerator(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))
        saves = ModelCheckpoint(folder / "checkpoints", filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(folder, steps, devices=2, strategy="fsdp2", callbacks=[saves], enable_checkpointing=True)
        trainer.fit(module, datamodule=make_data(folder, batch_size=2), ckpt_path=ckpt)

    first = folder / "checkpoints/step=1.ckpt"
    trained(1, None)
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        for path in foreign:
            shutil.copytree(first, path)
            for note in path.glob("checksums-*.json"):  # whoever changes files changes these too
                note.unlink()
        payload = Payload(folder / "it ran")
        (foreign[0] / ".metadata").write_bytes(pickle.dumps(payload))
        rest = torch.load(first / "meta.pt", weights_only=True)
        buffer = io.BytesIO()
        torch.save(rest | {"more": payload}, buffer)
        (foreign[1] / "meta.pt").write_bytes(buffer.getvalue())
    torch.distributed.barrier()
    said = []
    for path in foreign:
        with pytest.raises(CheckpointNotReadableError) as error:
            trained(2, path)
        said.append(str(error.value))
    trained(2, first)
    return said


def test_a_run_that_goes_on_from_a_foreign_directory_runs_nothing_of_it(tiny_model_dir, tmp_path):
    foreign = [tmp_path / "checkpoints" / f"{name}.ckpt" for name in ("contents", "rest")]
    said = run_ranks(2, fit, tmp_path, tiny_model_dir, foreign)
    assert said[0] == said[1]
    assert "posix.mkdir, which is no part of a checkpoint" in said[0][0]
    assert "meta.pt is not of a checkpoint of grpo_lightning" in said[0][1]
    assert not (tmp_path / "it ran").exists()
    assert (tmp_path / "checkpoints/step=2.ckpt/meta.pt").exists()
