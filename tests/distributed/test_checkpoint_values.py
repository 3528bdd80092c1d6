"""Values of users' rows and rewards in checkpoints: what goes in comes out."""

from __future__ import annotations

import copy
import datetime
import io
import pickle
import struct
from collections import Counter, OrderedDict, defaultdict
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from runs import make_data, make_module, make_trainer
from torch.optim.lr_scheduler import LambdaLR

from grpo_lightning.distributed.checkpoint_check import CheckpointNotReadableError, read_checkpoint
from grpo_lightning.distributed.checkpoint_io import AtomicCheckpointIO
from grpo_lightning.distributed.checkpoint_values import (
    NotStorableError,
    array_of,
    as_storable,
    stored_exactly,
    with_python_scalars,
)

AT = datetime.datetime(2024, 5, 6, 7, 8, 9)
TURNED_BACK = datetime.datetime(2024, 10, 27, 1, 30)
"""UTC: half past two in Berlin, for the second time that night."""
CELLS = {
    "text": pa.array(["a"]),
    "list": pa.array([[1.5, None]]),
    "struct": pa.array([{"a": 1, "b": [True]}]),
    "binary": pa.array([b"\x00\xff"]),
    "date": pa.array([AT.date()]),
    "time": pa.array([AT.time()]),
    "timestamp": pa.array([AT]),
    "aware": pa.array([AT], pa.timestamp("us", tz="Europe/Berlin")),
    "repeated hour": pa.array([TURNED_BACK], pa.timestamp("us", tz="Europe/Berlin")),
    "utc": pa.array([AT], pa.timestamp("us", tz="UTC")),
    "duration": pa.array([datetime.timedelta(hours=30)]),
    "decimal": pa.array([Decimal("1.25")]),
}


CHECKPOINT = {"state_dict": {}, "trained_names": []}


def is_storable(value: object) -> bool:
    try:
        stored_exactly(value)
    except NotStorableError:
        return False
    return True


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
    if isinstance(
        cell, datetime.datetime
    ):  # `==` of two times of the same zone does not look at which of the repeated hour it is
        assert again.astimezone(datetime.UTC) == cell.astimezone(datetime.UTC)
    if kind == "repeated hour":
        assert again.astimezone(datetime.UTC).replace(tzinfo=None) == TURNED_BACK


@pytest.mark.parametrize(
    "value", [AT.replace(fold=1), AT.time().replace(fold=1), AT.replace(fold=1, tzinfo=datetime.UTC)]
)
def test_which_of_two_equal_times_it_is_is_kept_in_copies_too(tmp_path, value):
    for again in (read_again(value, tmp_path / "a.ckpt"), copy.deepcopy(value), pickle.loads(pickle.dumps(value, 2))):
        assert (again, again.fold, again.tzinfo) == (value, 1, value.tzinfo)


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        None,
        10**30,
        1 + 2j,
        (1, "a"),
        {1, 2},
        UUID(int=7),
        ZoneInfo("UTC"),
        torch.ones(2),
        {"a": {(1, 2): [AT]}},
        nested(100),
    ],
)
def test_what_is_storable_is_read_again(tmp_path, value):
    assert is_storable(value)
    again = read_again(value, tmp_path / "a.ckpt")
    assert torch.equal(again, value) if isinstance(value, torch.Tensor) else again == value


class Name(str):
    """A class of the user's."""


def zone_of_a_file(key: str | None) -> ZoneInfo:
    """Two hours east of Greenwich all year, as RFC 8536 writes it: one type of local time, named in four bytes."""
    file = struct.pack(">4s16x6llbb4s", b"TZif", 0, 0, 0, 0, 1, 4, 7200, 0, 0, b"EET")
    return ZoneInfo.from_file(io.BytesIO(file), key)


NOWHERE, UNKNOWN = zone_of_a_file(None), zone_of_a_file("Middle/Earth")
AS_TEXT: list[tuple[object, object]] = [
    (frozenset([1]), "frozenset({1})"),
    (range(3), "range(0, 3)"),
    (Name("a"), "a"),
    ([{"a": Path("x"), "b": 1}], [{"a": "x", "b": 1}]),
    ({Name("a"): (1, range(1))}, {"a": (1, "range(0, 1)")}),
    (NOWHERE, str(NOWHERE)),
    (UNKNOWN, "Middle/Earth"),
    (AT.replace(tzinfo=NOWHERE), "2024-05-06 07:08:09+02:00"),
    ([AT.time().replace(tzinfo=UNKNOWN)], ["07:08:09+02:00"]),
    (np.datetime64("2024-01-01T00:00:00.000000001"), "2024-01-01T00:00:00.000000001"),
]


@pytest.mark.parametrize(("value", "text"), AS_TEXT, ids=[type(value).__name__ for value, _ in AS_TEXT])
def test_what_is_not_would_not_be_and_is_kept_as_text(tmp_path, value, text):
    assert not is_storable(value)
    with pytest.raises((CheckpointNotReadableError, AttributeError)):
        read_again(value, tmp_path / "a.ckpt")
    assert read_again(as_storable(value), tmp_path / "b.ckpt") == text


@pytest.mark.parametrize(
    ("scalar", "plain"),
    [
        (np.bool_(True), True),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.str_("a"), "a"),
        (np.datetime64("2024-05-06T07:08:09"), AT),
        (np.timedelta64(3, "s"), datetime.timedelta(seconds=3)),
        ({"a": [np.float64(0.5)], np.int8(1): (np.True_,)}, {"a": [0.5], 1: (True,)}),
    ],
)
def test_scalars_of_numpy_are_kept_as_pythons(tmp_path, scalar, plain):
    again = read_again(as_storable(scalar), tmp_path / "a.ckpt")
    assert is_storable(scalar) and again == plain and type(again) is type(plain) and repr(again) == repr(plain)


def test_what_holds_itself_or_too_much_is_kept_as_text(tmp_path):
    holder: list[object] = [1]
    holder += [holder, holder]
    assert not is_storable(holder)
    assert read_again(as_storable(holder), tmp_path / "a.ckpt") == [1, "[1, [...], [...]]", "[1, [...], [...]]"]
    mapping: dict[str, object] = {}
    mapping["own"] = [mapping]
    assert read_again(as_storable(mapping), tmp_path / "b.ckpt") == {"own": ["{'own': [{...}]}"]}
    assert not is_storable(nested(101)) and not is_storable(nested(100_000))
    assert read_again(as_storable({"a": nested(100_000), "b": 1}), tmp_path / "c.ckpt")["b"] == 1
    shared = [np.int64(1)]
    assert is_storable([shared, shared]) and as_storable([shared, shared]) == [[1], [1]]


class Noted(L.Callback):
    """Has a state with scalars and an array of NumPy in it."""

    def state_dict(self) -> dict[str, Any]:
        seen = (np.int64(3), {np.str_("a"): np.array(0.25)}, {np.int64(7)})
        return {"best": np.float32(0.5), "seen": seen, "curve": np.arange(6, dtype=np.int16).reshape(2, 3).T[::-1]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.found = state_dict


def test_a_run_whose_numbers_are_numpys_goes_on_from_its_own_checkpoint(tiny_model_dir, tmp_path):
    def module():
        schedule = partial(LambdaLR, lr_lambda=lambda step: np.cos(step / 10))
        return make_module(tiny_model_dir, lr_scheduler=schedule, beta=np.float64(0.5))

    trainer = make_trainer(tmp_path, 2, callbacks=[Noted()])
    trainer.fit(module(), datamodule=make_data(tmp_path))
    assert isinstance(trainer.optimizers[0].param_groups[0]["lr"], np.float64)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == float(0.1 * np.cos(0.2))
    noted = Noted()
    longer = make_trainer(tmp_path, 3, callbacks=[noted])
    longer.fit(module(), datamodule=make_data(tmp_path), ckpt_path=tmp_path / "last.ckpt")
    assert longer.global_step == 3 and noted.found["best"] == 0.5
    assert noted.found["seen"] == (3, {"a": 0.25}, {7}) and type(next(iter(noted.found["seen"][2]))) is int
    curve = noted.found["curve"]
    assert (type(curve), curve.dtype, curve.tolist()) == (np.ndarray, np.int16, [[2, 5], [1, 4], [0, 3]])


class Pair(NamedTuple):
    """A named tuple of the user's, whose class torch has been told of."""

    mean: Any
    seen: Any


DTYPES = ["bool", "int8", "uint16", "uint64", "float16", "float32", "float64", "complex64", "complex128"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_of_numbers_comes_back_as_it_was(tmp_path, dtype):
    array = np.arange(7, dtype=np.float64).astype(dtype)[1:].reshape(3, 2)
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT | {"held": [array, array[::-2], array[:0]]}, tmp_path / "a.ckpt")
    for found, wanted in zip(
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")["held"], [array, array[::-2], array[:0]], strict=True
    ):
        assert (type(found), found.dtype, found.shape) == (np.ndarray, wanted.dtype, wanted.shape)
        assert found.tobytes() == wanted.tobytes() and found.flags.writeable


def test_scalars_are_found_in_named_tuples_sets_and_counters(tmp_path):
    held = {"pair": Pair(np.float64(0.5), [np.True_]), "set": {np.int8(2)}, "count": Counter({np.str_("a"): 2})}
    with torch.serialization.safe_globals([Pair]):
        AtomicCheckpointIO().save_checkpoint(CHECKPOINT | held, tmp_path / "a.ckpt")
        found = AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    assert found["pair"] == Pair(0.5, [True]) and type(found["pair"].mean) is float
    assert found["set"] == {2} and [type(each) for each in found["set"]] == [int]
    assert found["count"] == {"a": 2} and type(found["count"]) is Counter
    assert type(held["pair"].mean) is np.float64  # of the run itself


@pytest.mark.parametrize(
    "array", [np.array(["a"]), np.array([None]), np.array(["2024-01-01"], "M8[D]"), np.ones(1, ">f8")]
)
def test_other_arrays_are_written_and_read_where_their_user_asks_for_it(tmp_path, array):
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT | {"held": array}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointNotReadableError, match="weights_only=False"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=False)["held"] == array


def test_what_a_file_makes_an_array_of_is_a_tensor():
    with pytest.raises(TypeError, match="not as a str"):
        array_of("numbers")


def test_what_has_no_scalar_of_numpy_is_the_same_object():
    holder: list[object] = [1, OrderedDict(a=torch.ones(1)), np.zeros(1)]
    holder.append(holder)
    assert with_python_scalars(holder) is holder
    counted = with_python_scalars(defaultdict(list, {np.int64(1): [np.True_]}))
    assert type(counted) is defaultdict and counted[1] == [True] and counted[2] == []
    assert [type(key) for key in counted] == [int, int]
