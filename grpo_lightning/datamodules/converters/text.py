"""A prompt written as a template over the columns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

from grpo_lightning.datamodules.converters.base import DatasetConverter, cell, require_columns
from grpo_lightning.datamodules.converters.registry import register_converter


@register_converter("text")
@dataclass
class TextDatasetConverter(DatasetConverter):
    r"""A template whose ``{column}`` fields are filled in from the row; all columns pass through.

    Args:
        template: The prompt. Write ``{{`` and ``}}`` for braces.
        ground_truth_key: Column that rewards receive as ``ground_truth``, or a path into one (``reward_model.ground_truth``).

    Example:
        >>> convert = TextDatasetConverter("Question: {question}\nAnswer:", ground_truth_key="gold")
        >>> convert({"question": "1 + 1?", "gold": "2"})["prompt"]
        'Question: 1 + 1?\nAnswer:'
    """

    template: str = "{text}"
    ground_truth_key: str | None = None
    _fields: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        fields = [name for _, name, _, _ in Formatter().parse(self.template) if name is not None]
        not_columns = [name for name in fields if not name.isidentifier()]
        if not_columns or not fields:
            raise ValueError(f"template={self.template!r} needs fields that are plain column names, such as {{text}}.")
        self._fields = tuple(fields)

    def __call__(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """The converted row; ValueError where a column of the template is missing."""
        self._require_keys(example)
        columns = {} if self.ground_truth_key is None else {"ground_truth": cell(example, self.ground_truth_key)}
        prompt = self.template.format(**{name: example[name] for name in self._fields})
        return self.make_row(prompt, example, used=(), **columns)

    def check_columns(self, columns: Collection[str]) -> None:
        """Every field of the template must be a column."""
        super().check_columns(columns)
        self._require_keys(columns)

    def _require_keys(self, columns: Collection[str]) -> None:
        require_columns(columns, {"ground_truth_key": self.ground_truth_key})
        for name in self._fields:
            require_columns(columns, {"a field of template": name})
