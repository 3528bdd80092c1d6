"""Conversations as a tokenizer's chat template writes them: its arguments for a row, and what is said where it fails."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedTokenizerBase

from grpo_lightning.messages import Message, as_read

TOOLS, TEMPLATE_KWARGS = "tools", "chat_template_kwargs"
"""Columns that reach the chat template of their row."""
NOT_FOR_TEMPLATES = frozenset(
    {
        *("conversation", "tokenize", "return_dict", "return_tensors", "return_assistant_tokens_mask"),
        *("padding", "truncation", "max_length", "tokenizer_kwargs", "processor_kwargs"),
    }
)
"""Arguments of ``apply_chat_template`` that say what becomes of the text: padding would be read as part of the prompt."""


def row_template_kwargs(row: Mapping[str, Any], chat_template_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the chat template for a row: those of the run, then the row's own, then its tools.

    Either column may be JSON text, as tables hold it whose rows differ in their keys.

    Raises:
        ValueError: If a column holds something else, or an argument is not for the template.

    Example:
        >>> row_template_kwargs({"chat_template_kwargs": {"enable_thinking": False}, "tools": "[]"}, {"mood": "calm"})
        {'mood': 'calm', 'enable_thinking': False}
    """
    own, tools = (_decoded(row.get(column), column) for column in (TEMPLATE_KWARGS, TOOLS))
    if own is not None and not isinstance(own, Mapping):
        raise ValueError(f"{TEMPLATE_KWARGS} holds {own!r:.80}, not a mapping.")
    if tools is not None and not isinstance(tools, list):
        raise ValueError(f"{TOOLS} holds {tools!r:.80}, not a list of tools.")
    merged = {**chat_template_kwargs, **(own or {}), **({TOOLS: tools} if tools else {})}
    taken = sorted(NOT_FOR_TEMPLATES & merged.keys())
    if taken:
        raise ValueError(
            f"{TEMPLATE_KWARGS} (of the row, or of the model) holds {', '.join(taken)}, which would change a prompt's tokens "
            "behind the template. Leave it out; data.max_prompt_length bounds prompts."
        )
    return merged


def _decoded(value: Any, column: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError as error:
        raise ValueError(f"{column} holds text that is not JSON: {value!r:.80}.") from error


@contextmanager
def applying_template(what: str) -> Iterator[None]:
    """Around the call of a chat template: templates raise their own kinds, on roles or contents that they do not know.

    Args:
        what: It is applied to.

    Raises:
        ValueError: In place of any error, with its text.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"The chat template cannot be applied to {what}: {error}") from error


def chat_ids(
    chats: Sequence[Sequence[Message]], tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any], what: str
) -> list[list[int]]:
    """Token ids of each conversation; in one call, several times as fast as one by one.

    Args:
        chats: With equal arguments of the template.
        tokenizer: With a chat template, unless the options bring one.
        options: Those arguments.
        what: The conversations are, for errors.

    Raises:
        ValueError: If the template fails on one of them.
    """
    with applying_template(what):
        read = as_read(chats, tokenizer, options)
        encoded: Any = tokenizer.apply_chat_template(read, **{**options, "tokenize": True, "return_dict": True})
    ids: list[list[int]] = encoded["input_ids"]
    return ids
