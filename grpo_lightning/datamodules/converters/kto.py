"""Rows with one completion that people like or do not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from grpo_lightning.datamodules.converters.base import require_columns
from grpo_lightning.datamodules.converters.registry import register_converter
from grpo_lightning.datamodules.converters.sft import SFTDatasetConverter


@register_converter("kto")
@dataclass
class KTODatasetConverter(SFTDatasetConverter):
    """Prompt and completion as ``sft`` makes them, and whether the completion is good.

    Args:
        label_key: Column that is true for a good completion and false for a bad one.
        **sft: Arguments of SFTDatasetConverter.

    Example:
        >>> KTODatasetConverter(label_key="liked")({"prompt": "1 + 2 =", "completion": " 4", "liked": False})
        {'prompt': '1 + 2 =', 'completion': ' 4', 'label': False}
    """

    label_key: str = "label"

    def __call__(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """The converted row; ValueError where there is no label."""
        label = example.get(self.label_key)
        if label not in (True, False):
            raise ValueError(f"label_key={self.label_key!r} holds {label!r}, neither true nor false.")
        row = super().__call__({name: value for name, value in example.items() if name != self.label_key})
        return {**row, "label": bool(label)}

    def check_columns(self, columns: Collection[str]) -> None:
        """The label must be a column."""
        require_columns(columns, {"label_key": self.label_key})
        super().check_columns(columns)
