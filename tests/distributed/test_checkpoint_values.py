"""Values of users' rows and rewards in checkpoints: what goes in comes out."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset

from grpo_lightning.distributed.checkpoint_check import CheckpointNotReadableError, read_checkpoint
from grpo_lightning.distributed.checkpoint_values import as_storable, is_storable

AT = datetime.datetime(2024, 5, 6, 7, 8, 9)
CELLS = {
    "text": pa.array(["a"]),
    "list": pa.array([[1.5, None]]),
    "struct": pa.array([{"a": 1, "b": [True]}]),
    "binary": pa.array([b"\x00\xff"]),
    "date": pa.array([AT.date()]),
    "time": pa.array([AT.time()]),
    "timestamp": pa.array([AT]),
    "aware": pa.array([AT], pa.timestamp("us", tz="Europe/Berlin")),
    "utc": pa.array([AT], pa.timestamp("us", tz="UTC")),
    "duration": pa.array([datetime.timedelta(hours=30)]),
    "decimal": pa.array([Decimal("1.25")]),
}


def read_again(value: object, path: Path) -> object:
    torch.save({"state_dict": {}, "trained_names": [], "value": value}, path)
    return read_checkpoint(path, weights_only=True)["value"]


@pytest.mark.parametrize("kind", CELLS)
def test_every_cell_of_a_table_can_be_stored_and_comes_back_as_it_was(tmp_path, kind):
    pq.write_table(pa.table({"cell": CELLS[kind]}), tmp_path / "rows.parquet")
    cell = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path))[0]["cell"]
    again = read_again(cell, tmp_path / "a.ckpt")
    assert is_storable(cell) and again == cell and type(again) is type(cell)
    assert getattr(again, "tzinfo", None) == getattr(cell, "tzinfo", None)


@pytest.mark.parametrize(
    "value",
    [None, 10**30, 1 + 2j, (1, "a"), {1, 2}, UUID(int=7), ZoneInfo("UTC"), torch.ones(2), {"a": {(1, 2): [AT]}}],
)
def test_what_is_storable_is_read_again(tmp_path, value):
    assert is_storable(value)
    again = read_again(value, tmp_path / "a.ckpt")
    assert torch.equal(again, value) if isinstance(value, torch.Tensor) else again == value


class Name(str):
    """A class of the user's."""


@pytest.mark.parametrize("value", [object(), range(3), frozenset([1]), Name("a"), [{"a": Path("x")}], {Name("a"): 1}])
def test_what_is_not_would_not_be_and_is_kept_as_text(tmp_path, value):
    assert not is_storable(value)
    with pytest.raises((CheckpointNotReadableError, AttributeError)):
        read_again(value, tmp_path / "a.ckpt")
    assert read_again(as_storable(value), tmp_path / "b.ckpt") == str(value)
