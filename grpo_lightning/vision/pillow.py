"""Pillow, which only runs with images need: imported when the first one is read."""

from __future__ import annotations

from types import ModuleType
from typing import Any


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
