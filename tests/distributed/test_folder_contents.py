"""Checkpoints that are directories, of somebody else: whatever they name is data, and no code runs."""

from __future__ import annotations

import io
import os
import pickle
from fractions import Fraction
from pathlib import Path, PosixPath
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from copy_generator import CopyGenerator
from foreign_directories import said_of_changed
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import run_ranks
from runs import make_data, make_module, make_trainer
from torch.distributed.checkpoint import save
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata
from torch.serialization import _get_layout

from grpo_lightning.distributed.checkpoint_check import CheckpointNotReadableError
from grpo_lightning.distributed.checkpoint_values import as_written
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


def foreign_prefix(folder: Path, prefix: bytes) -> Path:
    """Puts instructions before those of a good list of contents, which is what remains of it all."""
    whole = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(whole[:2] + prefix + whole[2:])
    return folder


@pytest.mark.parametrize(
    ("prefix", "changed"),
    [
        (b"cpathlib\nPosixPath\nN}X\x07\x00\x00\x00is_fileccollections\nOrderedDict\ns\x86b0", "PurePosixPath"),
        (b"ctorch.serialization\n_get_layout\nN}X\x04\x00\x00\x00moreK\x01s\x86b0", "_get_layout"),
        (b"ctorch.distributed.checkpoint.metadata\nMetadata\nN}X\x04\x00\x00\x00moreK\x01s\x86b0", "Metadata"),
        (
            b"ctorch.distributed.checkpoint.metadata\n_MEM_FORMAT_ENCODING\nK\x00\x85R}X\x04\x00\x00\x00moreK\x01sb0",
            "_MEM_FORMAT_ENCODING",
        ),
    ],
    ids=["path", "function", "dataclass", "member"],
)
def test_a_list_of_contents_changes_no_class(tmp_path, prefix, changed):
    folder, is_file = foreign_prefix(written(tmp_path / "step.ckpt"), prefix), PosixPath.is_file
    fault = str(contents_fault(folder))
    assert "it changes <" in fault and changed in fault
    assert PosixPath.is_file is is_file
    assert not any(
        hasattr(kind, "more") for kind in (Metadata, _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT, _get_layout)
    )


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
@pytest.mark.parametrize("name", ["PosixPath", "WindowsPath"])
def test_a_list_of_contents_of_another_system_and_python_is_read(tmp_path, module, name):
    path = f"c{module}\n{name}\nX\x01\x00\x00\x00a\x85R0".encode("latin-1")
    assert contents_fault(foreign_prefix(written(tmp_path / "step.ckpt"), path)) is None


def test_code_in_a_value_does_not_run(tmp_path):
    folder = tmp_path / "step.ckpt"
    save(wanted() | {"lr": Payload(tmp_path / "it ran")}, checkpoint_id=folder, no_dist=True)
    assert contents_fault(folder) is None
    with pytest.raises(CheckpointNotReadableError, match="cannot be used"):
        read_into(wanted(), folder)
    assert not (tmp_path / "it ran").exists()


def test_a_value_of_a_class_is_read_where_its_user_asks_for_it(tmp_path):
    folder, state = tmp_path / "step.ckpt", wanted()
    save(wanted() | {"lr": Fraction(1, 2)}, checkpoint_id=folder, no_dist=True)
    with pytest.raises(
        CheckpointNotReadableError,
        match=r"it names fractions\.Fraction, which .*: trainer\.fit\(\.\.\., weights_only=False\)\.$",
    ):
        read_into(state, folder)
    read_into(state, folder, weights_only=False)
    assert state["lr"] == Fraction(1, 2)


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({})], ids=["empty", "text", "another"])
def test_what_is_no_list_of_contents_is_a_fault(tmp_path, content):
    folder = written(tmp_path / "step.ckpt")
    (folder / ".metadata").write_bytes(content)
    assert ".metadata is not what was written" in str(contents_fault(folder))


class NumpyRates(L.Callback):
    """Leaves scalars of NumPy in the optimizer, as whoever sets a rate by ``np.interp`` does, and keeps an array."""

    curve: Any = np.array([0.5, 0.25])

    def state_dict(self) -> dict[str, Any]:
        return {"curve": self.curve, "best": {np.int64(3)}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert type(state_dict["curve"]) is np.ndarray and state_dict["curve"].tolist() == [0.5, 0.25]
        assert state_dict["best"] == {3}

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["lr"], group["maximize"] = np.interp(trainer.global_step, [0, 10], [1e-3, 0.0]), np.False_


def fit(folder: Path, model_dir: Path, foreign: list[Path]) -> list[str]:
    """A sharded step; then what every rank says of copies with a payload, and a second step out of the checkpoint itself."""

    def trained(steps: int, ckpt: Path | None) -> None:
        module = make_module(model_dir, generator=CopyGenerator(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3))
        saves = ModelCheckpoint(folder / "checkpoints", filename="{step}", every_n_train_steps=1, save_top_k=-1)
        more = {"callbacks": [saves, NumpyRates()], "enable_checkpointing": True}
        trainer = make_trainer(folder, steps, devices=2, strategy="fsdp2", **more)
        trainer.fit(module, datamodule=make_data(folder, batch_size=2), ckpt_path=ckpt)

    def change() -> None:
        for path in foreign:
            for note in path.glob("checksums-*.json"):  # whoever changes files changes these too
                note.unlink()
        payload = Payload(folder / "it ran")
        (foreign[0] / ".metadata").write_bytes(pickle.dumps(payload))
        rest = torch.load(first / "meta.pt", weights_only=True)
        buffer = io.BytesIO()
        torch.save(as_written(rest) | {"more": payload}, buffer)
        (foreign[1] / "meta.pt").write_bytes(buffer.getvalue())

    first = folder / "checkpoints/step=1.ckpt"
    trained(1, None)
    return said_of_changed(first, foreign, change, lambda path: trained(2, path))


def test_a_run_that_goes_on_from_a_foreign_directory_runs_nothing_of_it(tiny_model_dir, tmp_path):
    foreign = [tmp_path / "checkpoints" / f"{name}.ckpt" for name in ("contents", "rest")]
    said = run_ranks(2, fit, tmp_path, tiny_model_dir, foreign)
    assert said[0] == said[1]
    assert "posix.mkdir, which is no part of a checkpoint" in said[0][0]
    assert "meta.pt cannot be read: it names posix.mkdir, which is no plain data; if you trust" in said[0][1]
    assert not (tmp_path / "it ran").exists()
    assert (tmp_path / "checkpoints/step=2.ckpt/meta.pt").exists()
