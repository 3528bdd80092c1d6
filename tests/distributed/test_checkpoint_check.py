"""A checkpoint that is not what was written is noticed before anything goes on from it."""

from __future__ import annotations

import os
import random
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_lightning.distributed.checkpoint_check import (
    CheckpointNotReadableError,
    check_complete,
    check_parts,
    intact_beside,
    read_checkpoint,
)
from grpo_lightning.distributed.checkpoint_io import AtomicCheckpointIO

WEIGHTS = {"policy.a": torch.arange(512.0), "policy.b": torch.ones(3, 4)}


def saved(path: Path, **changes: Any) -> Path:
    state = {"state": {0: {"step": 1}, 1: {"step": 1}}, "param_groups": [{"params": [0, 1]}]}
    content = {"state_dict": WEIGHTS, "trained_names": sorted(WEIGHTS), "optimizer_states": [state]}
    AtomicCheckpointIO().save_checkpoint(content | changes, path)
    return path


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def test_a_flipped_bit_is_noticed_or_changed_nothing(tmp_path):
    path = saved(tmp_path / "last.ckpt")
    whole, content = path.read_bytes(), read_checkpoint(path, weights_only=True)
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: info for info in archive.infolist()}
    chosen = random.Random(0)
    noticed = 0
    for _ in range(200):
        place = chosen.randrange(len(whole))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << chosen.randrange(8)
        path.write_bytes(flipped)
        try:
            assert same(read_checkpoint(path, weights_only=True), content), place
        except CheckpointNotReadableError:
            noticed += 1
    assert noticed > 60  # the rest lies in the padding between records
    data = whole.index(WEIGHTS["policy.a"].numpy().tobytes())
    assert records
    for place in range(data, data + 2048, 64):  # inside of weights, every one
        flipped = bytearray(whole)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(CheckpointNotReadableError, match="contents have changed"):
            read_checkpoint(path, weights_only=True)


def test_the_newest_intact_checkpoint_beside_a_damaged_one_is_named(tmp_path):
    paths = [saved(tmp_path / f"{name}.ckpt") for name in ("old", "new", "cut", "last")]
    for age, path in enumerate(paths):
        os.utime(path, (age, age))
    for path in paths[2:]:
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointNotReadableError, match=r"cut off.*--ckpt_path '.*/new.ckpt'\.$"):
        AtomicCheckpointIO().load_checkpoint(paths[3])


def test_what_no_run_goes_on_from_is_not_named_beside_a_damaged_one(tmp_path):
    """Weights of another program, and of a sharded one an empty folder, were the newest intact ones."""
    ours, cut, foreign = saved(tmp_path / "step=1.ckpt"), saved(tmp_path / "last.ckpt"), tmp_path / "foreign.ckpt"
    torch.save({"state_dict": WEIGHTS}, foreign)
    for age, path in enumerate((ours, foreign, cut)):
        os.utime(path, (age, age))
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(CheckpointNotReadableError, match=r"cut off.*--ckpt_path '.*/step=1.ckpt'\.$"):
        AtomicCheckpointIO().load_checkpoint(cut)
    damaged = tmp_path / "sharded.ckpt"
    for folder in (damaged, tmp_path / "empty.ckpt"):
        folder.mkdir()
    assert intact_beside(damaged) == "There is no intact one beside it."
    (tmp_path / "empty.ckpt" / ".metadata").touch()  # as those of versions that noted no checksums
    assert "empty.ckpt" in intact_beside(damaged)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"not a checkpoint at all", "cut off, or not a checkpoint"),
        ({"state_dict": {"w": torch.zeros(1)}, "pytorch-lightning_version": "2"}, "not a checkpoint of grpo_lightning"),
        ([1, 2], "not a checkpoint of grpo_lightning"),
        ({"state_dict": {}, "trained_names": [], "format": 7}, "another version of grpo_lightning .format 7; this one"),
    ],
)
def test_what_is_no_checkpoint_of_ours_gets_one_line(content, message, tmp_path):
    path = tmp_path / "last.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointNotReadableError, match=message) as refused:
        AtomicCheckpointIO().load_checkpoint(path)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_that_lacks_something_is_refused():
    shapes = {name: weight.shape for name, weight in WEIGHTS.items()}
    state = {"state": {0: {"step": 1}}, "param_groups": [{"params": [0, 1]}]}
    check_complete({"state_dict": WEIGHTS, "optimizer_states": []}, shapes)
    with pytest.raises(CheckpointNotReadableError, match=r"lacks the weight policy\.b"):
        check_complete({"state_dict": {"policy.a": WEIGHTS["policy.a"]}}, shapes)
    with pytest.raises(CheckpointNotReadableError, match=r"policy.b has shape \(3, 3\) and not \(3, 4\)"):
        check_complete({"state_dict": WEIGHTS | {"policy.b": torch.ones(3, 3)}}, shapes)
    check_parts({"loops": {}, "optimizer_states": [state]}, ["loops"], restores_optimizer=True)
    check_parts({"loops": {}}, ["loops"])
    with pytest.raises(CheckpointNotReadableError, match=r"it lacks lr_schedulers\."):
        check_parts({"loops": {}}, ["loops", "lr_schedulers"])
    with pytest.raises(CheckpointNotReadableError, match=r"it lacks optimizer_states\. .*save_weights_only"):
        check_parts({"loops": {}, "optimizer_states": []}, ["loops"], restores_optimizer=True)
    with pytest.raises(CheckpointNotReadableError, match=r"states of 1 weights and trains 2"):
        check_complete({"state_dict": WEIGHTS, "optimizer_states": [state]}, shapes)


def test_a_class_that_is_not_made_is_named_without_the_advice_of_torch(tmp_path):
    path = saved(tmp_path / "last.ckpt", more=Fraction(1, 2))
    with pytest.raises(
        CheckpointNotReadableError,
        match=r"ckpt cannot be read: it names fractions\.Fraction, which .*trust .*: trainer\.fit\(\.\.\., weights_only=False\)\.$",
    ):
        AtomicCheckpointIO().load_checkpoint(path)
    assert AtomicCheckpointIO().load_checkpoint(path, weights_only=False)["more"] == Fraction(1, 2)


def test_code_that_a_checkpoint_names_does_not_run(tmp_path):
    class Payload:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "it ran"),)

    path = saved(tmp_path / "last.ckpt", more=Payload())
    reason = r"cannot be read: it names posix\.mkdir, which is no plain data; if you trust"
    with pytest.raises(CheckpointNotReadableError, match=reason):
        AtomicCheckpointIO().load_checkpoint(path)
    assert not (tmp_path / "it ran").exists()
