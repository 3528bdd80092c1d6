"""Text that no encoding has bytes for is written as an escape, whoever prints it."""

from __future__ import annotations

import io
import sys

import pytest

from grpo_lightning import __main__
from grpo_lightning.errors import write_all_text
from grpo_lightning.rewards.text.valid_text import in_words

HALF = chr(0xD83D)


def test_prints_that_the_terminal_has_no_bytes_for_are_escapes(monkeypatch):
    screen, errors = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding="utf-8"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(errors, encoding="latin-1"))
    with pytest.raises(UnicodeEncodeError):
        print(HALF)
    with pytest.raises(SystemExit):
        __main__.main(["report", "--help"])
    print(f"caf\u00e9 {HALF}", flush=True)
    print("\u2192", file=sys.stderr, flush=True)
    assert screen.getvalue().endswith("caf\u00e9 \\ud83d\n".encode()) and errors.getvalue() == b"\\u2192\n"


def test_streams_that_only_keep_text_stay_as_they_are(monkeypatch):
    kept = io.StringIO()
    monkeypatch.setattr(sys, "stdout", kept)
    write_all_text()
    print(HALF, end="")
    assert kept.getvalue() == HALF


def test_what_cannot_be_written_is_named_with_a_way_out():
    with pytest.raises(UnicodeEncodeError) as caught:
        ("default_root_dir: runs/caf" + "\udce9" + "\n").encode()
    words = in_words(caught.value)
    assert words.startswith("default_root_dir: runs/caf\\udce9 cannot be written") and "Rename the file" in words
    assert in_words(ValueError("no seed")) == "no seed"
