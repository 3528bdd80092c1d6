"""Rows as their converter made them: held against what a prompt must be, with its texts replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_lightning.datamodules.converters import Converter
from grpo_lightning.rewards.text.valid_text import valid_text

TOKENIZED = ("prompt", "completion", "chosen", "rejected")
"""Columns whose texts a tokenizer reads."""


def convert_row(row: Mapping[str, Any], convert: Converter, place: str) -> dict[str, Any]:
    """The converted row.

    Raises:
        ValueError: Whatever goes wrong; it quotes the place and the keys found.
    """
    try:
        converted = convert(row)
    except Exception as error:  # a user's converter may raise anything; the cause stays attached
        problem = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
        keys = "" if "Keys found" in problem else f" {_keys(row)}"
        raise ValueError(f"{place} cannot be converted: {problem}{keys}") from error
    if not isinstance(converted, dict) or not isinstance(converted.get("prompt"), str | list):
        raise ValueError(
            f"{place}: the converter returned {converted!r}, not a dict with 'prompt' as text or messages. {_keys(row)}"
        )
    if not converted["prompt"]:
        raise ValueError(f"{place} has an empty prompt. {_keys(row)}")
    for name in TOKENIZED:
        if _has_half_character(converted.get(name)):
            raise ValueError(
                f"{place}: {name!r} holds half of a surrogate pair, as an escape cut in two (\\ud83d) leaves it, which is no "
                f"character: {converted[name]!r:.80}. Repair the text, or leave the row out."
            )
    return dict(converted)


def _has_half_character(value: Any) -> bool:
    """Whether a text in it cannot be encoded, which tokenizers refuse."""
    if isinstance(value, str):
        return valid_text(value) != value
    if isinstance(value, Mapping):
        return any(map(_has_half_character, value.values()))
    return isinstance(value, list) and any(map(_has_half_character, value))


def _keys(row: Mapping[str, Any]) -> str:
    return f"Keys found: {', '.join(map(str, row)) or 'none'}."


def replaced_text(prompt: Any, replacements: Mapping[str, str]) -> Any:
    """A prompt with each key replaced by its value, one after the other, in text and in the content of messages; else as it is.

    Example:
        >>> replaced_text([{"role": "user", "content": "<hint> 1 + 1"}], {"<hint> ": ""})
        [{'role': 'user', 'content': '1 + 1'}]
    """
    if not replacements:
        return prompt
    if isinstance(prompt, str):
        for old, new in replacements.items():
            prompt = prompt.replace(old, new)
        return prompt
    if not isinstance(prompt, list):  # no text, which is refused with its row
        return prompt
    return [
        {**message, "content": _replaced_content(message["content"], replacements)} if "content" in message else message
        for message in prompt
    ]


def _replaced_content(content: Any, replacements: Mapping[str, str]) -> Any:
    if isinstance(content, str):
        return replaced_text(content, replacements)
    if isinstance(content, list):  # parts, such as {"type": "text", "text": ...}
        return [
            {**part, "text": replaced_text(part["text"], replacements)}
            if isinstance(part, dict) and isinstance(part.get("text"), str)
            else part
            for part in content
        ]
    return content
