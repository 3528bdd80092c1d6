"""Where rows come from, with real files; and the messages for whatever is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from grpo_lightning.datamodules import get_dataset, load_data_config
from grpo_lightning.datamodules.sources.find_dataset import find_dataset

ROWS = [{"prompt": "1 + 1", "n": 2}, {"prompt": "2 + 3", "n": 5}, {"prompt": "é", "n": 7}]


def write_jsonl(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_info(directory: Path, entries: Any) -> Path:
    path = directory / "dataset_info.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "csv"])
def test_local_files_of_every_kind_give_the_same_rows(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{suffix}"
    table = datasets.Dataset.from_list(ROWS)
    writers = {"parquet": table.to_parquet, "csv": table.to_csv}
    if suffix == "json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    elif suffix == "jsonl":
        write_jsonl(path)
    else:
        writers[suffix](str(path))
    assert get_dataset(str(path)).to_list() == ROWS


def test_a_directory_is_read_by_its_splits(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS[:2])
    write_jsonl(tmp_path / "test.jsonl", ROWS[2:])
    assert get_dataset(str(tmp_path)).to_list() == ROWS[:2]
    assert get_dataset(str(tmp_path), split="test").to_list() == ROWS[2:]


def test_a_directory_written_by_save_to_disk_is_read(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "two")
    assert get_dataset(str(tmp_path / "one")).to_list() == ROWS
    assert get_dataset(str(tmp_path / "two"), split="test").to_list() == [ROWS[1]]


def test_a_split_may_be_a_slice(tmp_path: Path) -> None:
    assert get_dataset(str(write_jsonl(tmp_path / "a.jsonl")), split="train[1:]").to_list() == ROWS[1:]


def test_a_missing_file_is_named_with_the_path_that_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no file or directory {tmp_path}/data/train.jsonl"):
        get_dataset("data/train.jsonl")


def test_a_file_of_another_kind_is_refused_with_the_kinds_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_text("x")
    with pytest.raises(
        ValueError, match=r"rows.xlsx is not one of .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow"
    ):
        get_dataset(str(tmp_path / "rows.xlsx"))


def test_a_file_with_broken_content_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "fine"}\n{"prompt": \n')
    with pytest.raises(ValueError, match=r"rows.jsonl cannot be read: "):
        get_dataset(str(path))


def test_an_unknown_split_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.jsonl, split test cannot be loaded: .*train"):
        get_dataset(str(write_jsonl(tmp_path / "a.jsonl")), split="test")


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl")
    assert len(get_dataset(str(path))) == 3
    write_jsonl(path, ROWS[:1])
    assert len(get_dataset(str(path), load_from_cache_file=False)) == 1


def test_a_hub_dataset_that_cannot_be_reached_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="no-such-owner/no-such-dataset, split train cannot be loaded"):
        get_dataset("no-such-owner/no-such-dataset")


def test_an_entry_says_where_how_and_with_which_converter(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl")
    info = write_info(
        tmp_path,
        {
            "small": {
                "file_name": "rows.jsonl",
                "num_samples": 2,
                "converter": "grpo",
                "columns": {"prompt": "q"},
                "converter_args": {"ground_truth_key": "n"},
            },
            "gsm8k_test": {"hf_hub_url": "openai/gsm8k", "subset": "main", "split": "test"},
        },
    )
    small = find_dataset("small", data_config=load_data_config(info))
    assert (small.converter, small.converter_args) == ("grpo", {"prompt": "q", "ground_truth_key": "n"})
    assert get_dataset("small", dataset_info=tmp_path).to_list() == ROWS[:2]
    hub = find_dataset("gsm8k_test", data_config=load_data_config(info))
    assert (hub.hub, hub.subset, hub.split) == ("openai/gsm8k", "main", "test")
    assert find_dataset("gsm8k_test", split="train", data_config=load_data_config(info)).split == "train"


def test_the_files_of_dataset_info_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "rows.jsonl")
    write_info(tmp_path / "data", {"small": {"file_name": "rows.jsonl"}})
    monkeypatch.chdir(tmp_path)
    assert get_dataset("small").to_list() == ROWS


def test_an_unknown_key_lists_the_keys(tmp_path: Path) -> None:
    info = write_info(tmp_path, {"gsm8k_train": {"hf_hub_url": "a/b"}, "gsm8k_test": {"hf_hub_url": "a/b"}})
    with pytest.raises(
        ValueError, match=r"'gsm8k_tets' is not a key of dataset_info.json \(keys: gsm8k_test, gsm8k_train"
    ):
        get_dataset("gsm8k_tets", dataset_info=info)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"file_name": "a.jsonl", "formating": "x"}, "unknown settings: formating. Known are: hf_hub_url"),
        ({"split": "train"}, "exactly one of hf_hub_url, file_name, reasoning_gym"),
        ({"file_name": "a.jsonl", "hf_hub_url": "a/b"}, "exactly one of hf_hub_url, file_name, reasoning_gym"),
        ({"file_name": "a.jsonl", "subset": "main"}, "subset belongs to a hub dataset"),
        ({"hf_hub_url": "a/b", "trust_remote_code": True}, "unknown settings: trust_remote_code"),
    ],
)
def test_an_entry_with_a_setting_that_would_be_ignored_is_refused(
    entry: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        get_dataset("it", dataset_info=write_info(tmp_path, {"it": entry}))


def test_a_dataset_info_that_is_missing_or_not_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no file {tmp_path}/dataset_info.json"):
        load_data_config(tmp_path)
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset_info.json is not JSON"):
        load_data_config(tmp_path)
    with pytest.raises(ValueError, match="must map each dataset's name"):
        load_data_config(write_info(tmp_path, ["a"]))


def test_there_are_no_entries_without_a_dataset_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_data_config() == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.jsonl", ""), ("a.json", ""), ("a.csv", ""), ("b.jsonl", "\n\n"), ("b.json", "[]"), ("b.csv", "n\n")],
)
def test_a_file_without_rows_is_said_to_have_none(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{path} has no rows\.$"):
        get_dataset(str(path))


def test_a_directory_of_empty_files_is_said_to_have_no_rows(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(ValueError, match=rf"{tmp_path} has no rows\.$"):
        get_dataset(str(tmp_path))
