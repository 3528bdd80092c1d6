"""Checksums of columns: values that are equal have the same, in every process, and values that are not have others."""

from __future__ import annotations

import datetime
import decimal
import uuid
import zoneinfo
from collections import OrderedDict
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from grpo_lightning.datamodules.prompts.column_checksums import checksum_of

UTC = datetime.UTC
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)),
        (datetime.datetime(2024, 1, 1, 12), datetime.datetime(2024, 1, 1, 13)),
        (datetime.datetime(2024, 1, 1, 12, tzinfo=UTC), datetime.datetime(2024, 1, 1, 12, tzinfo=BERLIN)),
        (
            datetime.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN),
            datetime.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1),
        ),
        (datetime.time(12), datetime.time(13)),
        (datetime.timedelta(seconds=1), datetime.timedelta(seconds=2)),
        (pd.Timestamp("2024-01-01"), pd.Timestamp("2024-01-02")),
        (decimal.Decimal("0.1"), decimal.Decimal("0.2")),
        (uuid.UUID(int=1), uuid.UUID(int=2)),
        (np.int64(3), np.int64(4)),
        (np.float32(0.5), np.float32(0.25)),
        (np.str_("a"), np.str_("b")),
        (np.longdouble(1), np.longdouble(2)),
        (np.datetime64("2024-01-01"), np.datetime64("2024-01-02")),
        (np.timedelta64(5, "ns"), np.timedelta64(5, "ps")),
        (np.array([1, 2]), np.array([1, 3])),
        (np.array([[1, 2]]), np.array([[1], [2]])),
        (np.array([1.0, 2.0]), np.array([1.0, 2.5])),
        (np.array(["a", None], dtype=object), np.array(["b", None], dtype=object)),
        (torch.tensor([1, 2]), torch.tensor([1, 3])),
        (torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([2.0], dtype=torch.bfloat16)),
        (torch.tensor([[1, 2]]), torch.tensor([[1], [2]])),
        (torch.tensor(1 + 2j), torch.tensor(1 + 2j).conj()),
        (torch.tensor([0.5]), torch.tensor([0.5], dtype=torch.float64)),
        ({1, 2}, {1, 3}),
        ({"a": 1}, {"a": 2}),
        ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
        (OrderedDict(a=1), OrderedDict(a=2)),
        (["a", ["b"]], [["a"], "b"]),
        (bytearray(b"a"), bytearray(b"b")),
    ],
)
@pytest.mark.parametrize("held", [lambda value: value, lambda value: {"at": [value]}], ids=["alone", "held"])
def test_values_that_differ_have_other_checksums(one: Any, other: Any, held: Any) -> None:
    assert checksum_of([held(one)]) != checksum_of([held(other)])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}),
        ({"a": 1, 2: "b", None: 3}, {None: 3, 2: "b", "a": 1}),
        ([{"a": 1, "b": 2}], [{"b": 2, "a": 1}]),
        ({"a", "b", "c", "d"}, {"d", "c", "b", "a"}),
        (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))),
        (np.arange(10)[::2], np.array([0, 2, 4, 6, 8])),
        (torch.arange(6).reshape(2, 3), torch.tensor([[0, 3], [1, 4], [2, 5]]).t()),
        (torch.arange(10)[::2], torch.tensor([0, 2, 4, 6, 8])),
        (torch.ones(2, requires_grad=True), torch.ones(2)),
        (torch.tensor(1 - 2j), torch.tensor(1 + 2j).conj()),
        (torch.zeros(0, 3), torch.zeros(0, 3)),
        (np.float64(0.5), 0.5),
        (object(), object()),
    ],
)
def test_values_that_are_equal_have_one(one: Any, other: Any) -> None:
    assert checksum_of([one]) == checksum_of([other])


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    "made",
    [
        lambda: torch.rand(3).to_sparse(),
        lambda: torch.rand(2, device="meta"),
        lambda: torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.rand(2), torch.rand(3)], layout=torch.jagged),
    ],
    ids=["sparse", "meta", "quantized", "nested"],
)
def test_of_tensors_that_are_not_dense_the_class_counts(made: Any) -> None:
    assert checksum_of([made()]) == checksum_of([made()]) != checksum_of([torch.rand(3)])


def test_the_order_of_rows_and_of_lists_counts() -> None:
    assert checksum_of([{"a": 1}, {"b": 2}]) != checksum_of([{"b": 2}, {"a": 1}])
    assert checksum_of([[1, 2]]) != checksum_of([[2, 1]])


def test_a_list_that_holds_itself_has_a_checksum() -> None:
    endless: list[Any] = [1]
    endless += [endless, endless]
    assert checksum_of([endless]) == checksum_of([endless])
