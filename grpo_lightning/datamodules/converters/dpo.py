"""Rows with two completions of a prompt, of which people prefer one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from grpo_lightning.datamodules.converters.base import as_prompt, asked, require_columns
from grpo_lightning.datamodules.converters.grpo import GRPODatasetConverter
from grpo_lightning.datamodules.converters.registry import register_converter
from grpo_lightning.types import Prompt


@register_converter("dpo")
@dataclass
class DPODatasetConverter(GRPODatasetConverter):
    """Prompt, chosen and rejected completion, as text or messages; TRL's forms of a preference dataset.

    A prompt that is not a column of its own is what both completions begin with, as TRL takes it: the same messages, or
    the same characters. So it is where the completions are whole conversations and the prompt stands beside them once more,
    as text or as messages.

    Args:
        chosen_key: Column of the completion that people prefer.
        rejected_key: Column of the other.
        **prompt: Arguments of GRPODatasetConverter.

    Example:
        >>> convert = DPODatasetConverter()
        >>> convert({"prompt": "1 + 2 =", "chosen": " 3", "rejected": " 4"})
        {'prompt': '1 + 2 =', 'chosen': ' 3', 'rejected': ' 4'}
        >>> convert({"chosen": "Sky: blue", "rejected": "Sky: green"})
        {'prompt': 'Sky:', 'chosen': ' blue', 'rejected': ' green'}
    """

    chosen_key: str = "chosen"
    rejected_key: str = "rejected"

    def __call__(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """The converted row; ValueError where a completion is missing, or there is no prompt."""
        keys = (self.chosen_key, self.rejected_key)
        for key, setting in zip(keys, ("chosen_key", "rejected_key"), strict=True):
            if not example.get(key):
                raise ValueError(f"the row has no completion under {setting}={key!r}.")
        chosen, rejected = (as_prompt(example[key], key) for key in keys)
        if isinstance(chosen, str) != isinstance(rejected, str):
            raise ValueError(f"of {keys[0]!r} and {keys[1]!r} one is text and the other messages. Use one form.")
        rest = {name: value for name, value in example.items() if name not in keys}
        if self._is_implicit(example, chosen, rejected):
            prompt, chosen, rejected = split_prompt(chosen, rejected)
            rest[self.prompt_key] = prompt
        row = super().__call__(rest)
        return {**row, "prompt": asked(row["prompt"], chosen), "chosen": chosen, "rejected": rejected}

    def _is_implicit(self, example: Mapping[str, Any], chosen: Prompt, rejected: Prompt) -> bool:
        if example.get(self.query_key):
            return False
        prompt = example.get(self.prompt_key)
        if not prompt or isinstance(chosen, str):
            return not prompt
        # Whole conversations with the prompt once more beside them: of UltraFeedback its text, of others its messages.
        if isinstance(prompt, str):
            return chosen[0]["role"] != "assistant"
        first = as_prompt(prompt, self.prompt_key)
        return chosen[: len(first)] == rejected[: len(first)] == first

    def check_columns(self, columns: Collection[str]) -> None:
        """Both completions must be columns; the prompt need not be."""
        try:
            require_columns(columns, {"chosen_key": self.chosen_key, "rejected_key": self.rejected_key})
        except ValueError as error:
            if "completion" in columns and "label" in columns:
                raise ValueError(
                    f"{error} Rows of a completion and a label are read with data.converter=kto."
                ) from error
            raise
        super().check_columns(columns)


def split_prompt(chosen: Prompt, rejected: Prompt) -> tuple[Prompt, Prompt, Prompt]:
    """What both begin with, and the two rests; of text, a space at the border belongs to the rests.

    The last message of a conversation belongs to its rest, also where the other one has the same.

    Raises:
        ValueError: If they begin differently, one is a single message, or one text begins with the whole other one.

    Example:
        >>> ask = {"role": "user", "content": "Sky?"}
        >>> say = [{"role": "assistant", "content": colour} for colour in ("blue", "green")]
        >>> split_prompt([ask, say[0]], [ask, say[1]])[0]
        [{'role': 'user', 'content': 'Sky?'}]
    """
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    if isinstance(chosen, str):
        shared -= bool(shared) and chosen[shared - 1] == " "
    else:
        shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    parts: tuple[Sequence[Any], ...] = (chosen[:shared], chosen[shared:], rejected[shared:])
    if not shared:
        raise ValueError(
            "there is no prompt, and the two completions begin differently, or one of them is a single message. Name the "
            "prompt's column with prompt_key."
        )
    if not all(parts):
        raise ValueError(
            "one of the two completions begins with the whole other one, so that nothing says where the prompt ends. Give "
            "the prompt in a column of its own."
        )
    return parts  # type: ignore[return-value]  # slices of what came in
