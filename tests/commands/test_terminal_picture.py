"""The picture of a terminal has its characters in their places and colours."""

from __future__ import annotations

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from xml.etree import ElementTree

import pytest
from pseudo_terminal import lines_in_terminal

ROOT = Path(__file__).parents[2]
TEXT = "{http://www.w3.org/2000/svg}text"


@pytest.fixture(scope="module")
def script():
    spec = spec_from_file_location("terminal", ROOT / "scripts" / "docs" / "terminal.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_run_of_one_colour_stands_in_its_column(script, tmp_path):
    command = [sys.executable, "-c", "print('a <b> \\x1b[1;32mgood\\x1b[0m')"]
    lines = lines_in_terminal(command, tmp_path, os.environ | {"TERM": "xterm-256color"}, 20, 4)
    plain, good, *rest = ElementTree.fromstring(script.picture(lines[:1])).iter(TEXT)
    assert [plain.text.rstrip(), good.text, rest] == ["a <b>", "good", []]
    assert float(good.get("x")) - float(plain.get("x")) == pytest.approx(6 * script.WIDTH, abs=0.1)
    assert (good.get("fill"), good.get("font-weight")) == (script.COLOURS["green"], "bold")


def test_the_picture_of_the_documentation_is_small_and_tells_the_result():
    path = ROOT / "docs" / "images" / "terminal_end.svg"
    said = [text.text for text in ElementTree.parse(path).iter(TEXT)]
    assert path.stat().st_size < 30_000
    assert any("held-out greedy accuracy" in text for text in said)
    assert any("written to runs/quickstart/summary.json" in text for text in said)
