"""Encodings of files, and directories of several formats: read as meant, or refused with what to do."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path

import pytest

from grpo_lightning.datamodules import get_dataset
from grpo_lightning.datamodules.sources.find_dataset import find_dataset

ROWS = [{"prompt": "Où est 東京?", "answer": "là"}, {"prompt": "q", "answer": "é"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TABLE = "prompt,answer\nOù est 東京?,là\nq,é\n"
MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
}


@pytest.mark.parametrize(("name", "text"), [("rows.jsonl", LINES), ("rows.csv", TABLE), ("rows.jsonl.gz", LINES)])
@pytest.mark.parametrize("encoding", MARKED)
def test_a_byte_order_mark_says_how_a_file_is_read(name: str, text: str, encoding: str, tmp_path: Path) -> None:
    content = MARKED[encoding] + text.encode(encoding)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert list(get_dataset(str(path))) == ROWS


@pytest.mark.parametrize(("name", "text"), [("rows.jsonl", LINES), ("rows.csv", TABLE), ("rows.json.gz", LINES)])
def test_latin_1_is_refused_with_its_line_its_byte_and_the_way_out(name: str, text: str, tmp_path: Path) -> None:
    content = text.replace("東京", "Rome").replace("Où", "Ou").replace("là", "la").encode("latin-1")
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    line = 3 if name.endswith("csv") else 2
    with pytest.raises(
        ValueError, match=rf"{name}.* cannot be read: line {line} is not UTF-8: byte 0xe9 in .*é"
    ) as caught:
        get_dataset(str(path))
    assert f"iconv -f WINDOWS-1252 -t UTF-8 {name} > utf8-{name}" in str(caught.value)
    assert "codec can't" not in str(caught.value)


def test_a_stream_of_latin_1_is_refused_at_its_line_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n' * 3 + '{"prompt": "é"}\n'.encode("latin-1"))
    blocks = find_dataset(str(path)).stream().blocks(2, epoch=0)
    with pytest.raises(ValueError, match="line 4 is not UTF-8"):
        next(blocks)


def test_utf_16_without_a_mark_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINES.encode("utf-16-le"))
    with pytest.raises(
        ValueError, match=r"zero bytes, as UTF-16 without a byte order mark.*iconv -f UTF-16LE -t UTF-8"
    ):
        get_dataset(str(path))


def test_a_directory_of_two_formats_is_refused_instead_of_read_by_half(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(LINES, encoding="utf-8")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "train.csv").write_text(TABLE, encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"several formats \(more/train.csv and train.jsonl\), of which one would be read"
    ):
        get_dataset(str(tmp_path))
    assert list(get_dataset(f"{tmp_path}/*.jsonl")) == ROWS


def test_hidden_files_and_descriptions_are_no_second_format(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(TABLE, encoding="utf-8")
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "old.jsonl").write_text(LINES, encoding="utf-8")
    assert list(get_dataset(str(tmp_path))) == ROWS


def test_a_card_that_names_its_data_files_decides_between_formats(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(TABLE, encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(LINES * 2, encoding="utf-8")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: b.jsonl\n---\n")
    assert list(get_dataset(str(tmp_path))) == ROWS * 2


def test_a_note_beside_the_data_is_not_read_as_data(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(LINES, encoding="utf-8")
    for name in ("LICENSE.txt", "notes.txt"):
        (tmp_path / name).write_text("Do as you like.\n")
    assert list(get_dataset(str(tmp_path))) == ROWS
