"""What a model directory of ``make_model`` was made of, to see without torch whether it is there. Standard library only."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

MADE_WITH = "made_with.json"


def made_of(shape: str, prompts: Path, mean_length: int, seed: int = 0) -> dict[str, Any]:
    """The arguments of ``make_model``, with the text as the first 16 hexadecimal digits of its SHA-256."""
    text = sha256(prompts.read_bytes()).hexdigest()[:16]
    return {"shape": shape, "mean_length": mean_length, "seed": seed, "text": text}


def is_made(out: Path, arguments: dict[str, Any]) -> bool:
    """Whether the directory holds what ``made_of`` says."""
    made_with = out / MADE_WITH
    return made_with.exists() and json.loads(made_with.read_text()) == arguments
