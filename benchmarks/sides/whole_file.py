"""Files that two benchmarks may write at once, as the two sides of a comparison do on two GPUs. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes a file that others see as it was before or with all of ``text``."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
