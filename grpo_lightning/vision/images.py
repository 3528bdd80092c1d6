"""Images as datasets hold them, to pictures in RGB."""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from grpo_lightning.vision.pillow import in_rgb, is_picture, pillow

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE, IMAGES = "image", "images"
"""Columns of a dataset: one image a row, or a list of them; TRL's names."""
FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k"),
    "PPM": (".pbm", ".pgm", ".ppm", ".pnm"),
}
"""What is opened, by Pillow's names, and how paths of it end. Of all that Pillow knows, PostScript would be handed to another
program."""


def read_image(value: Any) -> Image:
    """An image of a dataset, in RGB, turned upright as its EXIF data says (transformers and datasets do so too).

    Of an animation the first picture; transparency is left out; 16 bits of grey become 8.

    Args:
        value: A Pillow image; a path; a data URI; the bytes of a file; or a dictionary with ``bytes`` or a ``path``, as a table
            holds an image that is not decoded.

    Raises:
        ValueError: If it is something else, or cannot be read.

    Example:
        >>> read_image(pillow().new("L", (3, 2))).mode
        'RGB'
    """
    source = None if is_picture(value) else _source(value)
    library = pillow()
    try:
        if source is None:
            return in_rgb(value)
        with library.open(source, formats=tuple(FORMATS)) as opened:
            return in_rgb(opened)
    except Exception as error:  # decoders raise their own kinds, of hostile files any
        problem = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error!s:.120}"
        raise ValueError(
            f"the image {value!r:.80} cannot be read ({problem}). Write it as PNG or JPEG, or leave the row out."
        ) from error


def _source(value: Any) -> Any:
    """What Pillow opens."""
    has_bytes = isinstance(value, Mapping) and value.get("bytes") is not None
    data = value["bytes"] if has_bytes else value
    if isinstance(data, bytes):
        return io.BytesIO(data)
    path = value.get("path") if isinstance(value, Mapping) else value
    path = os.fspath(path) if isinstance(path, os.PathLike) else path
    if has_bytes or not isinstance(path, str) or not path:
        raise ValueError(
            f"{value!r:.80} is no image: give a path, a data URI, the bytes of a file, a Pillow image, or a dictionary with "
            "bytes or path."
        )
    if path.startswith("data:"):
        try:
            return io.BytesIO(base64.b64decode(path.partition(",")[2], validate=True))
        except binascii.Error as error:
            raise ValueError(f"the image {path!r:.80} cannot be read: its data is no base64 ({error}).") from error
    if "://" in path:
        raise ValueError(
            f"the image {path!r:.80} is an address, and nothing is fetched during a run. Download it first."
        )
    if not os.path.isfile(path):  # a pipe would be waited for
        raise ValueError(f"the image {path!r:.80} cannot be read: there is no such file.")
    return path


def holds_picture(value: Any) -> bool:
    """Whether a cell holds an image beyond doubt, or a list that begins with one.

    Example:
        >>> holds_picture(["dots.png"]), holds_picture("data:image/png;base64,AAAA"), holds_picture("a dog in the snow")
        (True, True, False)
    """
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, str):  # a path, or a description
        endings = tuple(ending for of_format in FORMATS.values() for ending in of_format)
        return first.startswith("data:image/") or first.lower().endswith(endings)
    data = first.get("bytes") if isinstance(first, Mapping) else first
    return is_picture(first) or isinstance(data, bytes)


def images_of_row(row: Mapping[str, Any]) -> list[Any]:
    """What the columns ``images`` or ``image`` of a row hold; ``images`` where it has both, as TRL reads them.

    Raises:
        ValueError: If ``images`` is no list.
    """
    if row.get(IMAGES) is not None:
        if not isinstance(row[IMAGES], list):
            raise ValueError(f"the column images holds {row[IMAGES]!r:.80}, not a list. One image goes into image.")
        return row[IMAGES]
    return [] if row.get(IMAGE) is None else [row[IMAGE]]


def reference_of(value: Any) -> Any:
    """A cell with images as a table of results keeps it: paths as they are, pixels as a few words.

    Example:
        >>> reference_of(["dots.png", {"bytes": b"123", "path": None}])
        ['dots.png', 'image of 3 bytes']
    """
    if isinstance(value, list):
        return [reference_of(each) for each in value]
    if is_picture(value):
        return f"image of {value.width} x {value.height} pixels"
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping) and value.get("path"):
        return value["path"]
    if isinstance(value, Mapping | bytes):
        data = value.get("bytes") if isinstance(value, Mapping) else value
        return f"image of {len(data) if isinstance(data, bytes) else 0} bytes"
    if isinstance(value, str) and value.startswith("data:"):
        return f"{value.partition(',')[0]}, image of {len(value)} characters"
    return value
