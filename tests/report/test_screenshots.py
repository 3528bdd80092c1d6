"""The pictures of the documentation are of the page, in the sizes that they are said to be of."""

from __future__ import annotations

import struct
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from browser import needs_chromium

ROOT = Path(__file__).parents[2]


def script():
    spec = spec_from_file_location("screenshots", ROOT / "scripts" / "docs" / "screenshots.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def size(path: Path) -> tuple[int, int]:
    return struct.unpack(">II", path.read_bytes()[16:24])


@needs_chromium
def test_the_script_takes_a_picture_of_each_size(small, tmp_path):
    made = script()
    pictures = made.take(small, tmp_path)
    assert [size(path) for path in pictures] == list(made.SIZES.values())


@pytest.mark.parametrize("name", ["desktop", "phone"])
def test_pictures_of_the_documentation_are_small(name):
    path = ROOT / "docs" / "images" / f"report_{name}.png"
    assert size(path) == script().SIZES[name]
    assert path.stat().st_size < 300_000
