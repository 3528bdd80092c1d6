"""Sharded checkpoints that a kill has left between two moves: a run goes on from the newest that is whole."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from copy_generator import CopyGenerator
from fork_server import CONTEXT
from lightning.pytorch.callbacks import ModelCheckpoint
from ranks import run_ranks
from runs import make_data, make_module, make_trainer, weights

from grpo_lightning.callbacks.earlier_run import newest_checkpoint
from grpo_lightning.callbacks.resume import check_named
from grpo_lightning.distributed.folder_checksums import note_checksums
from grpo_lightning.distributed.moved_folder import (
    drop_half_written_requeues,
    finish_move,
    part_of,
    put_in_place,
    wait_for_no_half_written_requeues,
)


def written(folder: Path, text: str, ranks_that_noted: int = 2) -> Path:
    folder.mkdir(parents=True)
    (folder / "meta.pt").write_text(text)
    (folder / ".metadata").write_text("contents")
    for rank in range(ranks_that_noted):
        note_checksums(folder, rank, 2)
    return folder


def text_of(path: Path) -> str:
    return (path / "meta.pt").read_text()


def killed_before(call: int, path: Path) -> None:
    """Puts a directory in its place, and is killed before the so many-th call that moves or removes something."""
    left = [call]

    def counted(real):
        def act(*args, **options):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(*args, **options)

        return act

    os.replace, os.unlink, os.rmdir = counted(os.replace), counted(os.unlink), counted(os.rmdir)
    put_in_place(path)


@pytest.mark.parametrize("call", range(5))
def test_wherever_a_kill_comes_the_newest_whole_checkpoint_is_found(call, tmp_path):
    path = written(tmp_path / "checkpoints/last.ckpt", "old")
    written(part_of(path), "new")
    process = CONTEXT.Process(target=killed_before, args=(call, path))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert newest_checkpoint(tmp_path, [path.parent]) == path
    assert text_of(path) == ("old" if call == 0 else "new")


@pytest.mark.parametrize("asked", ["last", "hpc"])
@pytest.mark.parametrize("call", range(5))
def test_what_slurm_asked_for_is_found_wherever_a_kill_comes(call, asked, tmp_path):
    path = written(tmp_path / "hpc_ckpt_1.ckpt", "old")
    written(part_of(path), "new")
    process = CONTEXT.Process(target=killed_before, args=(call, path))
    process.start()
    process.join()
    if asked == "hpc":
        check_named("hpc", tmp_path, "fit")
    else:
        assert newest_checkpoint(tmp_path, []) == path
    assert text_of(path) == ("old" if call == 0 else "new")


def test_other_ranks_wait_until_the_first_has_removed_what_was_half_written(tmp_path):
    part = written(tmp_path / "hpc_ckpt_1.ckpt.part", "half", ranks_that_noted=1)
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(wait_for_no_half_written_requeues, tmp_path, 1e6)
        assert not waits.done() and part.exists()
        drop_half_written_requeues(tmp_path)
        waits.result()
    part.mkdir()
    wait_for_no_half_written_requeues(tmp_path, seconds=0.2)  # the first was refused
    assert part.exists()


def test_directories_of_the_users_beside_those_for_slurm_are_left(tmp_path):
    mine = written(tmp_path / "mine.ckpt.old", "mine")
    assert newest_checkpoint(tmp_path, []) is None and mine.exists()


def test_a_directory_that_was_not_written_to_its_end_takes_no_place(tmp_path):
    old = written(tmp_path / "last.ckpt.old", "old")
    part = written(tmp_path / "last.ckpt.part", "new", ranks_that_noted=1)
    check_named(str(tmp_path / "last.ckpt"), tmp_path, "fit")
    assert text_of(tmp_path / "last.ckpt") == "old" and part.exists() and not old.exists()
    finish_move(tmp_path / "step=1.ckpt")
    written(tmp_path / "step=2.ckpt.part", "new", ranks_that_noted=0)
    assert newest_checkpoint(tmp_path, [tmp_path]) == tmp_path / "last.ckpt"


def test_what_was_replaced_does_not_come_back_once_the_new_one_is_removed(tmp_path):
    path = tmp_path / "step=2.ckpt"
    written(part_of(path), "new")
    old = written(path.with_name(path.name + ".old"), "old")
    finish_move(path)
    assert text_of(path) == "new" and not old.exists()


def test_what_was_about_to_be_removed_takes_its_place_again_if_it_is_whole(tmp_path):
    path = tmp_path / "step=2.ckpt"
    old = written(path.with_name(path.name + ".old"), "old")
    (old / "meta.pt").unlink()
    finish_move(path)
    assert not path.exists()
    written(old.with_name("step=4.ckpt.old"), "whole")
    finish_move(tmp_path / "step=4.ckpt")
    assert text_of(tmp_path / "step=4.ckpt") == "whole"


def test_a_directory_that_somebody_else_has_put_in_place_is_there(tmp_path):
    path = tmp_path / "last.ckpt"
    written(part_of(path), "new")
    finish_move(path)
    put_in_place(path)
    assert text_of(path) == "new"
    path.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        put_in_place(path)


def fit(folder: Path, model_dir: Path) -> dict[str, torch.Tensor]:
    """Goes on from the second of three steps, whose checkpoint was being replaced."""

    def trained(ckpt: Path | None) -> dict[str, torch.Tensor]:
        saves = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(folder, 3, devices=2, strategy="fsdp2", callbacks=[saves], enable_checkpointing=True)
        module = make_module(model_dir, generator=CopyGenerator())
        trainer.fit(module, datamodule=make_data(folder, batch_size=2), ckpt_path=ckpt, weights_only=False)
        if trainer.is_global_zero and ckpt is None:
            (folder / "step=2.ckpt").rename(folder / "step=2.ckpt.old")
        trainer.strategy.barrier()
        return {name: weight.full_tensor() for name, weight in weights(module).items()}

    whole, resumed = trained(None), trained(folder / "step=2.ckpt")
    return {name: (weight - resumed[name]).abs().max() for name, weight in whole.items()}


def test_ranks_go_on_from_what_was_about_to_be_replaced(tiny_model_dir, tmp_path):
    for differences in run_ranks(2, fit, tmp_path, tiny_model_dir):
        assert differences and not any(differences.values())
