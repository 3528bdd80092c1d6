"""Checkpoints that are directories: what has changed in one since it was written is noticed before a weight is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from copy_generator import CopyGenerator
from foreign_directories import said_of_changed
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import run_ranks
from runs import make_data, make_module, make_trainer

from grpo_lightning.distributed.folder_checksums import folder_fault, note_checksums


def written(folder: Path, ranks: int = 2) -> Path:
    folder.mkdir()
    for number in range(3):
        (folder / f"__{number}_0.distcp").write_bytes(
            bytes(range(100 * number, 100 * number + 50)) if number < 2 else b"c"
        )
    (folder / "meta.pt").write_bytes(b"meta")
    for rank in range(ranks):
        note_checksums(folder, rank, ranks)
    return folder


def faults(folder: Path, ranks: int) -> list[str]:
    return [fault for rank in range(ranks) if (fault := folder_fault(folder, rank, ranks)) is not None]


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_every_bit_of_every_file_is_checked_by_one_of_any_number_of_ranks(ranks, tmp_path):
    folder = written(tmp_path / "step.ckpt")
    assert faults(folder, ranks) == []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            continue
        whole = path.read_bytes()
        for changed in (bytes([whole[0] ^ 4]) + whole[1:], whole[:-1], whole + b"x"):
            path.write_bytes(changed)
            assert faults(folder, ranks) == [
                f"its contents have changed since they were written (checksum of {path.name})"
            ]
        path.unlink()
        assert faults(folder, ranks) == [f"it lacks {path.name}"]
        path.write_bytes(whole)


def test_a_lost_list_of_checksums_is_a_fault_and_an_older_checkpoint_without_any_is_none(tmp_path):
    folder = written(tmp_path / "step.ckpt")
    (folder / "checksums-1.json").unlink()
    assert folder_fault(folder) == "its checksums are not all there"
    (folder / "checksums-0.json").write_text("{cut o")
    assert folder_fault(folder) == "its checksums are not all there"
    (folder / "checksums-0.json").unlink()
    assert folder_fault(folder) is None


def fit(folder: Path, model_dir: Path, refused: list[Path]) -> list[str]:
    """Two sharded steps; then what is said of each of these checkpoints, by every rank, and a third step."""

    def trained(steps: int, ckpt: Path | None) -> None:
        module = make_module(model_dir, generator=CopyGenerator())
        saves = ModelCheckpoint(folder / "checkpoints", filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(folder, steps, devices=2, strategy="fsdp2", callbacks=[saves], enable_checkpointing=True)
        trainer.fit(module, datamodule=make_data(folder, batch_size=2), ckpt_path=ckpt, weights_only=False)

    def change() -> None:
        for path in refused:
            os.utime(path, (1, 1))
        shard = refused[0] / "__1_0.distcp"
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
        (refused[1] / "__0_0.distcp").unlink()
        (refused[2] / "meta.pt").unlink()

    trained(2, None)
    return said_of_changed(folder / "checkpoints/step=1.ckpt", refused, change, lambda path: trained(3, path))


def test_ranks_refuse_a_damaged_directory_together_and_name_an_intact_one(tiny_model_dir, tmp_path):
    refused = [tmp_path / "checkpoints" / f"{name}.ckpt" for name in ("flipped", "lacking", "headless")]
    said = run_ranks(2, fit, tmp_path, tiny_model_dir, refused)
    assert said[0] == said[1]
    for text, path, fault in zip(
        said[0], refused, ["(checksum of __1_0.distcp)", "it lacks __0_0.distcp", "it lacks meta.pt"], strict=True
    ):
        assert f"The checkpoint {path} cannot be used: " in text and fault in text
        assert "go on with --ckpt_path '" in text and "step=2.ckpt'" in text
    assert (tmp_path / "checkpoints/step=3.ckpt/checksums-1.json").exists()
