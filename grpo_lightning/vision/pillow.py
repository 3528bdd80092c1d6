"""Pillow, which only runs with images need: imported when the first one is read."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image


def pillow() -> ModuleType:
    """The module ``PIL.Image``.

    Raises:
        ValueError: If Pillow is not installed, with the command that installs it.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError(
            f"images are read with Pillow, which cannot be imported ({error}). Run pip install 'grpo-lightning[vision]'."
        ) from error
    return Image


def is_picture(value: Any) -> bool:
    """Whether this is an image of Pillow's; without importing it, which whoever made the image has done."""
    return any(kind.__module__.partition(".")[0] == "PIL" for kind in type(value).__mro__)


def in_rgb(picture: Any) -> Image:
    """The picture in RGB, upright; whatever its file's decoder raises.

    Raises:
        ValueError: If its numbers have no range that is known.
    """
    from PIL import ImageOps

    if picture.mode in ("I", "F"):
        raise ValueError(
            f"its mode {picture.mode} does not say which numbers are black and white; convert it to 8 bits"
        )
    if picture.mode.startswith("I;16"):  # convert would cut off all that is above 255, and leave it white
        picture = picture.convert("I").point(lambda value: value / 256).convert("L")
    return ImageOps.exif_transpose(picture).convert("RGB")
