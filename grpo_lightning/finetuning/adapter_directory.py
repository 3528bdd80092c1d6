"""Directories that hold an adapter, told apart from those of models; without peft, which takes seconds to import."""

from __future__ import annotations

import json
from pathlib import Path

ADAPTER_CONFIG_NAME = "adapter_config.json"
"""What peft writes beside an adapter's weights."""


def refuse_adapter_directory(model_name_or_path: str, setting: str) -> None:
    """Raises ValueError where an adapter is given as the model: transformers would add it to its base unasked.

    Args:
        model_name_or_path: Directory or hub name.
        setting: That names it.
    """
    path = Path(model_name_or_path) / ADAPTER_CONFIG_NAME
    if path.is_file():
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
        raise ValueError(
            f"{setting}={model_name_or_path!r} is an adapter. Name an export with the adapter added in (hf/last), or, as the "
            f"policy, set model.model_name_or_path to the adapter's base ({base!r}) and model.adapter_name_or_path to the adapter."
        )
