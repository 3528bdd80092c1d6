"""A checkpoint that cannot be written costs nothing but itself."""

from __future__ import annotations

import resource

import pytest
import torch

from grpo_lightning.distributed.checkpoint_io import AtomicCheckpointIO


@pytest.fixture
def small_files_only():
    """Lets this process write files of at most 64 KiB: a real failed write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_comes_back(tmp_path):
    AtomicCheckpointIO().save_checkpoint({"weights": torch.arange(3.0)}, tmp_path / "new/last.ckpt")
    assert torch.load(tmp_path / "new/last.ckpt", weights_only=True)["weights"].tolist() == [0.0, 1.0, 2.0]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["last.ckpt"]


def test_a_sharded_checkpoint_is_refused_with_the_strategy_that_reads_it(tmp_path):
    with pytest.raises(ValueError, match=r"is a directory.* Go on with trainer.strategy=fsdp2"):
        AtomicCheckpointIO().load_checkpoint(tmp_path)


def test_a_failed_write_leaves_the_previous_checkpoint_and_no_rest(tmp_path, small_files_only):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    with pytest.raises(
        OSError, match=r"last.ckpt could not be written .*last.ckpt, of an earlier step, is untouched.*--ckpt_path last"
    ):
        AtomicCheckpointIO().save_checkpoint({"step": 2, "weights": torch.zeros(100_000)}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_after_a_failed_write_the_message_names_a_checkpoint_that_is_there(tmp_path, small_files_only):
    large = {"weights": torch.zeros(100_000)}
    with pytest.raises(
        OSError, match=r"There is no earlier one. Free disk space, or make the folder writable, and start again"
    ):
        AtomicCheckpointIO().save_checkpoint(large, tmp_path / "last.ckpt")
    AtomicCheckpointIO().save_checkpoint({"step": 2}, tmp_path / "step=2.ckpt")
    with pytest.raises(OSError, match=r"go on with --ckpt_path '.*step=2.ckpt'"):
        AtomicCheckpointIO().save_checkpoint(large, tmp_path / "last.ckpt")
