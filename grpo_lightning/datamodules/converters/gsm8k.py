"""GSM8K (arXiv:2110.14168) and data in its form: a worked solution whose last line is ``#### answer``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from grpo_lightning.datamodules.converters.base import DatasetConverter, as_prompt, require_columns
from grpo_lightning.datamodules.converters.registry import register_converter


@register_converter("gsm8k")
@dataclass
class GSM8KDatasetConverter(DatasetConverter):
    r"""Question as prompt, the number after ``####`` as ``ground_truth``, the text before it as ``chain_of_thought``.

    Thousands separators are removed from the number. The answer column passes through unchanged.

    Args:
        question_key: Column of the question.
        answer_key: Column of the worked solution.

    Example:
        >>> row = {"question": "How many?", "answer": "500 * 2 = 1000 clips.\n#### 1,000"}
        >>> GSM8KDatasetConverter(pass_through=False)(row)["ground_truth"]
        '1000'
    """

    question_key: str = "question"
    answer_key: str = "answer"

    def __call__(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """The converted row; ValueError where the answer has no ``####``."""
        self._require_keys(example)
        chain_of_thought, mark, final = str(example[self.answer_key]).rpartition("####")
        ground_truth = final.strip().replace(",", "")
        if not mark or not ground_truth:
            raise ValueError(f"{self.answer_key!r} has no '#### answer' at its end: {str(example[self.answer_key])!r}.")
        return self.make_row(
            as_prompt(example[self.question_key], self.question_key),
            example,
            used={self.question_key},
            ground_truth=ground_truth,
            chain_of_thought=chain_of_thought.strip(),
        )

    def check_columns(self, columns: Collection[str]) -> None:
        """Both keys must be columns."""
        super().check_columns(columns)
        self._require_keys(columns)

    def _require_keys(self, columns: Collection[str]) -> None:
        require_columns(columns, {"question_key": self.question_key, "answer_key": self.answer_key})
