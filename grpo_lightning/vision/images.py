"""Images as datasets hold them, to pictures in RGB."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from grpo_lightning.vision.pillow import is_picture, pillow

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE, IMAGES = "image", "images"
"""Columns of a dataset: one image a row, or a list of them; TRL's names."""
ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Of paths that are those of images."""


def read_image(value: Any) -> Image:
    """An image of a dataset, in RGB.

    Args:
        value: A Pillow image; a path; a data URI; or a dictionary with ``bytes`` or a ``path``, as a table holds an image
            that is not decoded.

    Raises:
        ValueError: If it is something else, or cannot be read.

    Example:
        >>> read_image(pillow().new("L", (3, 2))).mode
        'RGB'
    """
    if is_picture(value):
        return cast("Image", value.convert("RGB"))
    try:
        with pillow().open(_source(value)) as opened:
            return cast("Image", opened.convert("RGB"))
    except (OSError, binascii.Error) as error:  # the first is also Pillow's, of a file that is no image
        raise ValueError(f"the image {value!r:.80} cannot be read ({type(error).__name__}: {error!s:.120}).") from error


def _source(value: Any) -> Any:
    """What Pillow opens."""
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        return io.BytesIO(value["bytes"])
    path = value.get("path") if isinstance(value, Mapping) else value
    if not isinstance(path, str) or not path:
        raise ValueError(
            f"{value!r:.80} is no image: give a path, a data URI, a Pillow image, or a dictionary with bytes or path."
        )
    if path.startswith("data:"):
        return io.BytesIO(base64.b64decode(path.partition(",")[2], validate=True))
    if "://" in path:
        raise ValueError(
            f"the image {path!r:.80} is an address, and nothing is fetched during a run. Download it first."
        )
    return path


def holds_picture(value: Any) -> bool:
    """Whether a cell holds an image beyond doubt, or a list that begins with one.

    Example:
        >>> holds_picture(["dots.png"]), holds_picture("data:image/png;base64,AAAA"), holds_picture("a dog in the snow")
        (True, True, False)
    """
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, str):  # a path, or a description
        return first.startswith("data:image/") or first.lower().endswith(ENDINGS)
    return is_picture(first) or (isinstance(first, Mapping) and isinstance(first.get("bytes"), bytes))


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
    if isinstance(value, Mapping):
        data = value.get("bytes")
        return value.get("path") or f"image of {len(data) if isinstance(data, bytes) else 0} bytes"
    if isinstance(value, str) and value.startswith("data:"):
        return f"{value.partition(',')[0]}, image of {len(value)} characters"
    return value
