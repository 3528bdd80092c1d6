"""A reward for processes of rewards, in a module that imports nothing heavy: each such process imports it again."""

from __future__ import annotations

import os
from typing import Any


def visible(completions: list[str], **columns: Any) -> list[float]:
    """The GPU that the process sees; -1 where nothing says so."""
    return [float(os.environ.get("CUDA_VISIBLE_DEVICES", "-1"))] * len(completions)
