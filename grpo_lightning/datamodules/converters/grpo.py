"""The general converter: columns named by settings become the prompt and the ground truth."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from grpo_lightning.datamodules.converters.base import DatasetConverter, as_prompt, cell, has_cell, require_columns
from grpo_lightning.datamodules.converters.registry import register_converter
from grpo_lightning.types import Prompt

PROMPT_KEY, QUERY_KEY = "prompt", "query"


@register_converter("grpo")
@dataclass
class GRPODatasetConverter(DatasetConverter):
    r"""Joins a query and a prompt column and renames the ground truth; text and conversational prompts.

    The prompt is ``query + "\n" + prompt``, or whichever of the two the row has. A text query before conversational
    prompts joins the last user message. A key may lead into a column of dictionaries: ``reward_model.ground_truth``.

    Args:
        prompt_key: Column of the prompt: text, or messages with ``role`` and ``content``.
        query_key: Column of a query that goes before the prompt.
        ground_truth_key: Column that rewards receive as ``ground_truth``.
        prompt: Another name for prompt_key; wins where both are given.
        query: Another name for query_key.
        ground_truth: Another name for ground_truth_key.

    Example:
        >>> convert = GRPODatasetConverter(prompt_key="input", query_key="instruction", ground_truth_key="output")
        >>> convert({"instruction": "Add.", "input": "1 + 2", "output": "3", "level": 1})
        {'prompt': 'Add.\n1 + 2', 'ground_truth': '3', 'level': 1}
    """

    prompt_key: str = PROMPT_KEY
    query_key: str = QUERY_KEY
    ground_truth_key: str | None = None
    prompt: str | None = None
    query: str | None = None
    ground_truth: str | None = None

    def __post_init__(self) -> None:
        self.prompt_key = self.prompt or self.prompt_key
        self.query_key = self.query or self.query_key
        self.ground_truth_key = self.ground_truth or self.ground_truth_key

    def __call__(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """The converted row; ValueError where it has neither key, or cells that cannot be joined."""
        if not has_cell(example, self.prompt_key) and not has_cell(example, self.query_key):
            raise ValueError(
                f"the row has neither prompt_key={self.prompt_key!r} nor query_key={self.query_key!r}. "
                f"Keys found: {', '.join(example) or 'none'}. Name the one with the prompt in "
                "data.converter_args.prompt_key."
            )
        prompt, query = (
            as_prompt(cell(example, key) if has_cell(example, key) else None, key)
            for key in (self.prompt_key, self.query_key)
        )
        used = {self.prompt_key, self.query_key, self.ground_truth_key}
        columns = {}
        truth = self.ground_truth_key
        if truth and (truth in example or truth.split(".")[0] in example):  # a column may be missing, a path not
            columns["ground_truth"] = cell(example, truth)
        return self.make_row(_joined(query, prompt), example, {name for name in used if name}, **columns)

    def check_columns(self, columns: Collection[str]) -> None:
        """A row may lack a key, but a key that was set and that no row has is a misspelt one."""
        super().check_columns(columns)
        set_keys = {
            "prompt_key": self.prompt_key if self.prompt_key != PROMPT_KEY else None,
            "query_key": self.query_key if self.query_key != QUERY_KEY else None,
            "ground_truth_key": self.ground_truth_key,
        }
        require_columns(columns, set_keys)


def _joined(query: Prompt, prompt: Prompt) -> Prompt:
    """The query before the prompt."""
    if not query or not prompt:
        return query or prompt
    if not isinstance(query, str):
        raise ValueError("the query is conversational and there is a prompt too. Keep one of them, or make both text.")
    if isinstance(prompt, str):
        return query + "\n" + prompt
    users = [index for index, message in enumerate(prompt) if message["role"] == "user"]
    if not users or not isinstance(prompt[users[-1]]["content"], str):
        raise ValueError("there is a text query, but the conversational prompt has no user message with text to join.")
    joined = [dict(message) for message in prompt]
    joined[users[-1]]["content"] = query + "\n" + joined[users[-1]]["content"]
    return joined
