"""Image files of all kinds, hostile ones among them: each is shown as it looks, or refused with its row."""

from __future__ import annotations

import io
import re
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.prompts.form import PromptForm
from grpo_lightning.errors import RefusedRowError
from grpo_lightning.vision.images import FORMATS, holds_picture, read_image
from tests.runs import make_module
from tests.vision.toy_checkpoint import save_toy_llava
from tests.vision.toy_vision import picture

ASK = [{"role": "user", "content": "How many?"}]


def written(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def bomb(side: int = 20_000) -> bytes:
    """A PNG of a few hundred bytes that says of itself to be as large as this."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def processing(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_module(save_toy_llava(tmp_path_factory.mktemp("llava")), vision_tower="frozen").policy.image_processing


def data_of(rows: list[dict[str, Any]], processing: Any) -> PromptDataset:
    return PromptDataset(rows, dict, PromptForm(processing.tokenizer, image_processing=processing), "rows")


def test_an_image_is_the_same_from_every_form_that_holds_it(tmp_path: Path):
    path, data = tmp_path / "a.png", written(picture(3))
    path.write_bytes(data)
    for form in (picture(3), path, str(path), data, {"bytes": data}, {"path": str(path), "bytes": None}):
        assert read_image(form).tobytes() == picture(3).tobytes()


@pytest.mark.parametrize(
    ("image", "form", "middle"),
    [
        (Image.new("RGBA", (8, 8), (10, 20, 30, 0)), "PNG", (10, 20, 30)),
        (Image.new("P", (8, 8), 1), "GIF", None),
        (Image.new("L", (8, 8), 77), "PNG", (77, 77, 77)),
        (Image.new("I;16", (8, 8), 77 * 256), "PNG", (77, 77, 77)),
        (Image.new("I;16B", (8, 8), 77 * 256), "TIFF", (77, 77, 77)),
        (Image.new("CMYK", (8, 8)), "JPEG", (255, 255, 255)),
        (Image.new("1", (8, 8), 1), "TIFF", (255, 255, 255)),
    ],
    ids=["transparent", "palette", "grey", "16 bits of grey", "16 bits, large end first", "cmyk", "bilevel"],
)
def test_an_image_of_other_colours_looks_in_rgb_as_it_does(image: Image.Image, form: str, middle: Any):
    found = read_image(written(image, form))
    assert (found.mode, found.size) == ("RGB", (8, 8))
    assert found.getpixel((4, 4)) == (middle or image.convert("RGB").getpixel((4, 4)))


def test_paths_of_all_formats_that_are_opened_are_told_from_text():
    registered = Image.registered_extensions()
    for form, endings in FORMATS.items():
        assert {registered[ending] for ending in endings} == {form}
        assert all(holds_picture(f"photos/A{ending.upper()}") for ending in endings)
    assert not any(map(holds_picture, ["a dog.", "drawing.eps", "png", ""]))


def test_without_pillow_the_package_is_named_and_no_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(0).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)  # as where it is not installed
    with pytest.raises(ValueError, match=r"^images are read with Pillow, .*pip install 'grpo-lightning\[vision\]'\.$"):
        read_image(str(tmp_path / "a.png"))


def test_of_an_animation_the_first_picture_is_shown():
    first, second = Image.new("L", (8, 8), 20), Image.new("L", (8, 8), 200)
    assert read_image(written(first, "GIF", save_all=True, append_images=[second])).getpixel((4, 4)) == (20, 20, 20)


def test_a_photo_is_turned_upright_as_its_camera_says():
    image, camera = Image.new("RGB", (16, 8)), Image.Exif()
    image.paste((255, 255, 255), (0, 0, 8, 8))
    camera[0x0112] = 6  # the camera was held upright: what is left in the file is at the top
    found = read_image(written(image, "JPEG", exif=camera))
    assert found.size == (8, 16)
    assert found.getpixel((4, 2)) > (200, 200, 200) and found.getpixel((4, 13)) < (50, 50, 50)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"bytes": bomb()}, "400000000 pixels"),
        ({"bytes": written(picture(0, 40, 40))[:-200]}, "truncated"),
        (Image.open(io.BytesIO(written(picture(0, 40, 40))[:-200])), "truncated"),
        (b"no image", "cannot identify image file"),
        (b"", "cannot identify image file"),
        ({"bytes": "text"}, "is no image"),
        ("data:image/png;base64,@@@", "no base64"),
        ("/", "no such file"),
        ("a\0b", "no such file"),
        (Image.new("F", (8, 8), 0.5), "mode F does not say"),
        (written(picture(0), "EPS"), "cannot identify image file"),
    ],
    ids=lambda value: value if isinstance(value, str) and "\0" not in value else "",
)
def test_what_cannot_be_shown_is_refused_with_its_row(image: Any, message: str, processing: Any):
    rows = [{"prompt": ASK, "image": picture(1)}, {"prompt": ASK}, {"prompt": ASK, "image": image}]
    with pytest.raises(ValueError, match=f"^rows, row 2: (?s:.)*({message})"):
        data_of(rows, processing)


def test_no_file_of_an_image_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pillow has PostScript drawn by Ghostscript."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    with pytest.raises(ValueError, match="cannot be read"):
        read_image(written(picture(0), "EPS"))
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 40), (2000, 1)])
def test_images_of_any_shape_become_the_tokens_of_their_model(size: tuple[int, int], processing: Any):
    data = data_of([{"prompt": ASK, "image": picture(0, *size)}, {"prompt": ASK}], processing)
    shown = data.batch([0, 1])
    assert [int(each.is_image.sum()) for each in shown.images] == [16, 0]
    assert shown.images[0].pixels["pixel_values"].isfinite().all()
    assert torch.equal(torch.tensor(shown.prompt_ids[0]) == processing.image_token_id, shown.images[0].is_image)


def test_an_image_that_goes_away_during_the_run_is_named_with_its_row(tmp_path: Path, processing: Any):
    path = tmp_path / "a.png"
    picture(0).save(path)
    data = data_of([{"prompt": ASK}, {"prompt": ASK, "image": str(path)}], processing)
    path.unlink()
    with pytest.raises(
        RefusedRowError, match=f"^rows, row 1: the image {re.escape(repr(str(path))[:78])}.*no such file"
    ):
        data.batch([1])
