"""Directories that hold an adapter, told apart from those of models; without peft, which takes seconds to import."""

from __future__ import annotations

import json
from pathlib import Path

ADAPTER_CONFIG_NAME = "adapter_config.json"
"""What peft writes beside an adapter's weights."""


def refuse_adapter_directory(model_name_or_path: str) -> None:
    """Raises ValueError where an adapter is given as the model: transformers would add it to its base unasked."""
    path = Path(model_name_or_path) / ADAPTER_CONFIG_NAME
    if path.is_file():
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
        raise ValueError(
            f"model.model_name_or_path={model_name_or_path!r} is an adapter. Set it to the adapter's base ({base!r}) and "
            "model.adapter_name_or_path to the adapter."
        )
