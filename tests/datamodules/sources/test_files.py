"""Values of files arrive as they were written: hand-written files against hand-written values."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import datasets
import pytest
from toy_models import build_tokenizer

from grpo_lightning.datamodules import GRPODatasetConverter, get_dataset
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.prompts.form import PromptForm
from grpo_lightning.datamodules.sources.files import file_format
from grpo_lightning.datamodules.sources.json_rows import rows_inside
from grpo_lightning.datamodules.sources.rows import without_padding

HOSTILE_VALUES = [
    ["2024-01-02", "2023-12-31"],
    ["2024-01-02T03:04:05", "2024-05-06T07:08:09Z"],
    [2**63, 5],
    [-(2**70), 0],
    [10**18 + 1, 0.5],
    [5, 0.5, None, "5", "0.50", True],
    [{"a": None}, {"b": 1}],
    [[1, "x"], [], None],
    ["NaN", "null", "", "001"],
]


@pytest.mark.parametrize("values", HOSTILE_VALUES, ids=repr)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz"])
def test_json_arrives_with_its_values_and_their_types(values: list[Any], name: str, tmp_path: Path) -> None:
    rows = [{"prompt": "q", "ground_truth": value} for value in values]
    path = tmp_path / name
    text = json.dumps(rows, indent=1) if name == "rows.json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    prompts = PromptDataset(get_dataset(str(path)), GRPODatasetConverter(), PromptForm(build_tokenizer()), "it")
    arrived = prompts.batch(range(len(values))).columns["ground_truth"]
    assert repr(arrived) == repr(values)  # 5 and 5.0 and True differ


def test_a_directory_of_json_arrives_with_its_values_too(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"day": "2024-01-02"}\n{"day": 18446744073709551616}\n')
    assert get_dataset(str(tmp_path), split="test").to_list() == [{"day": "2024-01-02"}, {"day": 2**64}]
    assert get_dataset(str(tmp_path), split="test[1:]").to_list() == [{"day": 2**64}]


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["5", "0.5", ""], [5, 0.5, None]),
        (["5", "0.50"], ["5", "0.50"]),
        (["007", "8"], ["007", "8"]),
        (["1,200", "7"], ["1,200", "7"]),
        (["NA", "null", "nan"], ["NA", "null", "nan"]),
        (["2024-01-02", "2024-02-03"], ["2024-01-02", "2024-02-03"]),
        ([str(2**70), "-3"], [2**70, -3]),
        (["True", "False", ""], [True, False, None]),
        (["true", "False"], ["true", "False"]),
        (["1e5", "2"], ["1e5", "2"]),
        (["inf", "1.5"], ["inf", "1.5"]),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz"])
def test_a_column_of_text_is_made_of_numbers_only_where_nothing_is_lost(
    cells: list[str], values: list[Any], suffix: str, tmp_path: Path
) -> None:
    between = "\t" if suffix == "tsv" else ","
    lines = ["prompt" + between + "gold", *(f'q{between}"{cell}"' if cell else f"q{between}" for cell in cells)]
    data = ("\ufeff" + "\n".join(lines) + "\n").encode()
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    arrived = get_dataset(str(path)).to_list()
    assert repr([row["gold"] for row in arrived]) == repr(values)
    assert [row["prompt"] for row in arrived] == ["q"] * len(cells)


def test_cells_may_hold_line_breaks_and_separators(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('q,a\n"first\nsecond, third","say ""yes"""\n')
    assert get_dataset(str(path)).to_list() == [{"q": "first\nsecond, third", "a": 'say "yes"'}]


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("q;a\n1,5;2\n", {"q": "1,5", "a": 2}),
        ("q\ta\n1;5\t2\n", {"q": "1;5", "a": 2}),
        ("q,a;b\n1;5,2\n", {"q": "1;5", "a;b": 2}),
        ("q\n1;5\n", {"q": "1;5"}),
    ],
)
def test_the_head_of_a_csv_says_what_separates_its_cells(text: str, row: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    assert get_dataset(str(path)).to_list() == [row]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_files_are_read_by_their_ending(pack: Any, tmp_path: Path) -> None:
    ending = {"gzip": "gz", "bz2": "bz2", "lzma": "xz"}[pack.__module__.lstrip("_")]
    path = tmp_path / f"rows.jsonl.{ending}"
    path.write_bytes(pack(b'{"a": 1}\n'))
    assert get_dataset(str(path)).to_list() == [{"a": 1}]


def test_arrow_and_parquet_files_are_read_and_their_types_kept(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([{"a": 1}, {"a": 2}])
    table.save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    table.to_parquet(tmp_path / "rows.parquet")
    for path in (arrow, tmp_path / "rows.parquet"):
        assert get_dataset(str(path)).to_list() == [{"a": 1}, {"a": 2}]


def test_a_pattern_names_files_in_order_and_one_without_files_is_refused(tmp_path: Path) -> None:
    for number in (2, 1, 3):
        folder = tmp_path / f"part{number}"
        folder.mkdir()
        (folder / "rows.jsonl").write_text(json.dumps({"n": number}) + "\n")
    assert [row["n"] for row in get_dataset(str(tmp_path / "part*" / "*.jsonl"))] == [1, 2, 3]
    assert [row["n"] for row in get_dataset({"file_name": str(tmp_path / "**" / "*.jsonl"), "num_samples": 2})] == [
        1,
        2,
    ]
    with pytest.raises(FileNotFoundError, match=r"no file matches .*\*\.csv"):
        get_dataset(str(tmp_path / "*.csv"))
    (tmp_path / "part1" / "rows.csv").write_text("n\n1\n")
    with pytest.raises(ValueError, match=r"matches files of several formats \(csv, json\)"):
        get_dataset(str(tmp_path / "part1" / "rows.*"))


def test_rows_lie_in_a_list_inside_of_an_object_and_a_key_names_it_where_there_are_several(tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"version": "2.0", "data": [{"q": 1}, {"q": 2}]}))
    assert get_dataset(str(path)).to_list() == [{"q": 1}, {"q": 2}]
    path.write_text(json.dumps({"train": [{"q": 1}], "dev": [{"q": 2}]}))
    with pytest.raises(ValueError, match=r"several lists of rows: train, dev. Name one: .*field"):
        get_dataset(str(path))
    assert get_dataset({"file_name": str(path), "field": "dev"}).to_list() == [{"q": 2}]
    with pytest.raises(ValueError, match=r"field='test' is not a list in the file. Found: train, dev"):
        get_dataset({"file_name": str(path), "field": "test"})


def test_one_row_whose_prompt_is_a_conversation_is_one_row() -> None:
    row = {"prompt": [{"role": "user", "content": "Hi"}], "answer": "x"}
    assert rows_inside(row) == [row]
    assert rows_inside([row]) == [row]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"a": 1}\n[1, 2]\n', r"line 2 holds \[1, 2\], not an object"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"line 2 is not JSON: Expecting value"),
        ("a.json", '{"a": [1, 2}', r"it is not JSON: Expecting ',' delimiter"),
        ("a.json", "[1, 2]", r"row 0 holds 1, not an object"),
        ("a.csv", "a,b\n1,2\n3\n", r"row 1 has 1 cells and the head 2"),
        ("a.csv", "a,a\n1,2\n", r"names a column twice: a, a"),
        ("a.jsonl.gz", "not packed", r"Not a gzipped file"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_quoted(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} cannot be read: .*{message}"):
        get_dataset(str(tmp_path / name))


def test_lists_of_text_are_rows_of_text(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["one", "two"]')
    assert get_dataset(str(tmp_path / "a.json")).to_list() == [{"text": "one"}, {"text": "two"}]


RAGGED = [
    {
        "call": {"name": "f", "arguments": {"x": 1}},
        "turns": [{"role": "assistant", "content": None, "calls": [{"id": 1}]}],
    },
    {"call": {"name": "g", "arguments": {"y": [{"z": "1"}]}}, "turns": [{"role": "user", "content": "Hi"}]},
]


def test_the_padding_of_ragged_dictionaries_is_removed_at_every_depth(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(RAGGED)
    assert table[0]["call"]["arguments"] == {"x": 1, "y": None}  # Arrow's doing
    table.to_parquet(tmp_path / "rows.parquet")
    for rows in (table, get_dataset(str(tmp_path / "rows.parquet")), table.to_iterable_dataset()):
        assert list(without_padding(rows)) == RAGGED


def test_a_key_that_was_written_as_null_stays_in_json_and_in_rows_from_python(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "info": {"best": None}}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    for source in (rows, get_dataset(str(tmp_path / "a.jsonl"))):
        assert PromptDataset(source, dict, PromptForm(build_tokenizer()), "it").batch([0]).columns == {
            "info": [{"best": None}]
        }


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_dataset_dict_without_the_split_is_answered_in_one_line(split: str, tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([{"a": 1}])
    datasets.DatasetDict({"test": table, "validation": table}).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=rf"has no split '{split}', only test, validation\. Name one") as refused:
        get_dataset(str(tmp_path), split=split)
    assert "\n" not in str(refused.value)
    assert len(get_dataset(str(tmp_path), split="test+validation")) == 2


def test_formats_are_told_by_the_ending_alone() -> None:
    assert [file_format(name) for name in ("a.JSONL", "a.tsv.bz2", "a.gz", "a", "a.b.csv")] == [
        *("json", "csv", None, None, "csv")
    ]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("data/trian.jsonl", "data/train.jsonl"),
        ("data/train.json", "data/train.jsonl"),
        ("./data/TRAIN.JSONL", "data/train.jsonl"),
        ("dta/train.jsonl", "data/train.jsonl"),
        ("data/notes.jsonl", None),  # notes.md has no rows
        ("elsewhere/train.jsonl", None),
    ],
)
def test_a_path_at_which_nothing_is_is_answered_with_one_like_it(written, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "data" / "notes.md").touch()
    with pytest.raises(FileNotFoundError) as raised:
        get_dataset(written)
    assert str(raised.value).partition("Did you mean ")[2] == (f"{meant}?" if meant else "")


def test_a_name_without_an_ending_is_answered_with_the_file_that_has_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl.gz").touch()
    Path("info.json").write_text('{"gsm8k": {"file_name": "train.jsonl.gz"}}')
    with pytest.raises(ValueError, match=r"Did you mean train.jsonl.gz\?$"):
        get_dataset("train")
    with pytest.raises(ValueError, match=r"Did you mean gsm8k\?$"):
        get_dataset("gms8k", dataset_info="info.json")
