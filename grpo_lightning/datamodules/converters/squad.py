"""SQuAD (arXiv:1606.05250, 1806.03822) and data in its form: answer a question from a passage."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from grpo_lightning.datamodules.converters.base import DatasetConverter
from grpo_lightning.datamodules.converters.registry import register_converter


@register_converter("squad")
@dataclass
class SquadDatasetConverter(DatasetConverter):
    r"""The passage and the question as prompt, the accepted answers as ``ground_truth``, the passage as ``context``.

    ``ground_truth`` is the list of different accepted answers, in the dataset's order; for a question that the passage
    does not answer (SQuAD 2.0) it is ``[unanswerable]``. Rewards that check claims against the passage read
    ``context``, which always passes through.

    Args:
        template: The prompt, with ``{context}`` and ``{question}`` where they go.
        unanswerable: The accepted answer where there is none.

    Example:
        >>> row = {"context": "Lima is in Peru.", "question": "Where is Lima?", "answers": {"text": ["Peru", "Peru"]}}
        >>> SquadDatasetConverter(pass_through=False)(row)
        {'prompt': 'Lima is in Peru.\nWhere is Lima?', 'ground_truth': ['Peru'], 'context': 'Lima is in Peru.'}
    """

    template: str = "{context}\n{question}"
    unanswerable: str = "unanswerable"

    def __call__(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """The converted row; ValueError where it is not in SQuAD's form."""
        self._require_keys(example)
        answers = example["answers"]
        if not isinstance(answers, Mapping) or "text" not in answers:
            raise ValueError(f"'answers' holds {answers!r}, not a mapping with 'text'.")
        return self.make_row(
            self.template.format(context=example["context"], question=example["question"]),
            example,
            used={"question", "answers"},
            ground_truth=list(dict.fromkeys(answers["text"])) or [self.unanswerable],
            context=example["context"],
        )

    def check_columns(self, columns: Collection[str]) -> None:
        """The three columns of SQuAD must be there."""
        super().check_columns(columns)
        self._require_keys(columns)

    def _require_keys(self, columns: Collection[str]) -> None:
        missing = [name for name in ("context", "question", "answers") if name not in columns]
        if missing:
            raise ValueError(
                f"SQuAD's {', '.join(missing)} not in the row. Keys found: {', '.join(columns) or 'none'}."
            )
