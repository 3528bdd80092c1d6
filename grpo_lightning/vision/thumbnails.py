"""Small pictures of prompts' images, for those who read a run."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_SIDE = 128
"""Pixels."""
MOST = 4
"""Thumbnails of a prompt; what lies behind is left out."""
MAX_CHARACTERS = 16_384
"""Of one: noise of these pixels takes about half of it."""
PREFIX = "data:image/jpeg;base64,"


def thumbnails(images: Sequence[Image]) -> list[str]:
    """Data URIs of the first few images, each a JPEG of at most ``LONGEST_SIDE`` pixels a side.

    Args:
        images: In RGB; left as they are.
    """
    return [_thumbnail(image) for image in images[:MOST]]


def _thumbnail(image: Image) -> str:
    small = image.copy()
    small.info = {}  # a comment in the file would be written again, of any length
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    written = io.BytesIO()
    small.save(written, "JPEG", quality=60)
    return PREFIX + base64.b64encode(written.getvalue()).decode()


def is_thumbnail(text: str) -> bool:
    """Whether this is what ``thumbnails`` makes: a file may have been written by something else."""
    return text.startswith(PREFIX) and len(text) <= MAX_CHARACTERS
