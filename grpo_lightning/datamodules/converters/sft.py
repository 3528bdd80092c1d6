"""Rows that show what to write: a prompt and its completion."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from grpo_lightning.datamodules.converters.base import as_prompt, asked, require_columns
from grpo_lightning.datamodules.converters.grpo import GRPODatasetConverter
from grpo_lightning.datamodules.converters.registry import register_converter


@register_converter("sft")
@dataclass
class SFTDatasetConverter(GRPODatasetConverter):
    """The prompt as ``grpo`` makes it, and the completion to learn, as text or messages.

    Args:
        completion_key: Column of the completion.
        messages_key: Column of a whole conversation instead: its last message is the completion, the others the prompt.
        **prompt: Arguments of GRPODatasetConverter.

    Example:
        >>> convert = SFTDatasetConverter(prompt_key="question", completion_key="worked")
        >>> convert({"question": "1 + 2?", "worked": "1 + 2 = 3"})
        {'prompt': '1 + 2?', 'completion': '1 + 2 = 3'}
        >>> chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        >>> SFTDatasetConverter(messages_key="messages")({"messages": chat})["completion"]
        [{'role': 'assistant', 'content': 'Hello'}]
    """

    completion_key: str = "completion"
    messages_key: str | None = None

    def __call__(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """The converted row; ValueError where there is no completion."""
        if self.messages_key is not None:
            return self._from_messages(example, self.messages_key)
        if not example.get(self.completion_key):
            raise ValueError(f"the row has no completion under completion_key={self.completion_key!r}.")
        row = super().__call__({name: value for name, value in example.items() if name != self.completion_key})
        completion = as_prompt(example[self.completion_key], self.completion_key)
        return {**row, "prompt": asked(row["prompt"], completion), "completion": completion}

    def _from_messages(self, example: Mapping[str, Any], key: str) -> dict[str, Any]:
        messages = as_prompt(example.get(key), key)
        if not isinstance(messages, list) or len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise ValueError(f"{key!r} needs at least two messages, of which the last is the assistant's.")
        return self.make_row(messages[:-1], example, {key}, completion=messages[-1:])

    def check_columns(self, columns: Collection[str]) -> None:
        """The completion, or the conversation, must be a column."""
        if self.messages_key is not None:
            return require_columns(columns, {"messages_key": self.messages_key})
        if self.completion_key not in columns and "messages" in columns:
            raise ValueError(
                f"completion_key={self.completion_key!r} is not a column, and messages is one: whole conversations are read with "
                "data.converter_args.messages_key=messages."
            )
        super().check_columns(columns)
        require_columns(columns, {"completion_key": self.completion_key})
