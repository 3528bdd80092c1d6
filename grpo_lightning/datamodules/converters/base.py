"""What every shipped converter shares: the form of the prompt and the columns that travel along."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from grpo_lightning.types import Message, Prompt

SPEAKERS = ("system", "developer", "user", "assistant")
"""Roles that speak. What a tool gives may be an object, which some chat templates write as JSON."""


@dataclass
class DatasetConverter(ABC):
    """Turns one raw row into ``{"prompt": ..., **columns for the rewards}``.

    Args:
        system_prompt: Put before every prompt as a system message; prompts become conversational.
        conversational: True makes a plain text prompt one user message, to which the chat template is applied.
        pass_through: Which further columns reach the rewards: all (True), those of ``ALWAYS_PASSED`` only (False), or
            those and the ones in this list.
        drop_solution: True takes the assistant's messages off the end of a conversation: they are the solution, which
            rewards receive as ``solution``, and not the start of an answer.
    """

    ALWAYS_PASSED: ClassVar[tuple[str, ...]] = (
        *("labels", "category", "metadata", "answer"),
        *("tools", "chat_template_kwargs"),  # for the row's chat template
        "reasoning_gym",  # for the reward of that name
        *("image", "images"),  # for a policy that sees them
    )

    system_prompt: str | None = field(default=None, kw_only=True)
    conversational: bool = field(default=False, kw_only=True)
    pass_through: bool | list[str] = field(default=True, kw_only=True)
    drop_solution: bool = field(default=False, kw_only=True)

    @abstractmethod
    def __call__(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """The converted row.

        Raises:
            ValueError: If the row does not hold what a prompt needs. Whoever reads the dataset adds the row's place.
        """

    def check_columns(self, columns: Collection[str]) -> None:
        """Raises ValueError if a setting of this converter names a column that the dataset does not have."""
        if isinstance(self.pass_through, list):
            for name in self.pass_through:
                require_columns(columns, {"a column of pass_through": name})

    def make_row(
        self, prompt: Prompt, example: Mapping[str, Any], used: Collection[str], **columns: Any
    ) -> dict[str, Any]:
        """The prompt in its final form, the new columns, then those of the row that pass through.

        Args:
            prompt: Text or messages.
            example: The raw row.
            used: Its columns that the prompt and the new columns were made from; they pass only if asked for by name.
            columns: New columns; they win over columns of the row with the same name.
        """
        prompt, solution = split_solution(prompt) if self.drop_solution else (prompt, "")
        row = {"prompt": self._in_final_form(prompt), **columns}
        if solution:
            row.setdefault("solution", solution)
        for name, value in example.items():
            if name not in row and self._passes(name, used):
                row[name] = value
        return row

    def _passes(self, name: str, used: Collection[str]) -> bool:
        if name in self.ALWAYS_PASSED:
            return True
        if isinstance(self.pass_through, list):
            return name in self.pass_through
        return self.pass_through and name not in used

    def _in_final_form(self, prompt: Prompt) -> Prompt:
        if isinstance(prompt, str):
            if self.system_prompt is None and not self.conversational:
                return prompt
            prompt = [{"role": "user", "content": prompt}]
        if self.system_prompt is None:
            return prompt
        if any(message["role"] == "system" for message in prompt):
            raise ValueError("the row has a system message of its own. Remove system_prompt or that message.")
        return [{"role": "system", "content": self.system_prompt}, *prompt]


def has_cell(example: Mapping[str, Any], key: str) -> bool:
    """True where ``cell`` finds something, be it None."""
    try:
        cell(example, key)
    except ValueError:
        return False
    return True


def cell(example: Mapping[str, Any], key: str) -> Any:
    """The value of a column, or, for a key with dots that is no column, of a place inside one.

    Args:
        example: The raw row.
        key: A column (``answer``), or a path through the dictionaries in it (``reward_model.ground_truth``).

    Raises:
        ValueError: Naming the part of the path that is not there, and the keys that are.

    Example:
        >>> cell({"reward_model": {"style": "rule", "ground_truth": "42"}}, "reward_model.ground_truth")
        '42'
    """
    if key in example:
        return example[key]
    value: Any = example
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            found = ", ".join(map(str, value)) if isinstance(value, Mapping) else _shortened(value)
            raise ValueError(f"{key!r} leads nowhere: no {part!r} in {found or 'an empty row'}.")
        value = value[part]
    return value


def split_solution(prompt: Prompt) -> tuple[Prompt, str]:
    """The prompt without the assistant's messages at its end, and their text.

    Example:
        >>> split_solution([{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}])
        ([{'role': 'user', 'content': '1 + 1'}], '2')
    """
    if isinstance(prompt, str):
        return prompt, ""
    end = len(prompt)
    while end and prompt[end - 1]["role"] == "assistant":
        end -= 1
    texts = [message["content"] for message in prompt[end:]]
    return prompt[:end], "\n".join(text for text in texts if isinstance(text, str))


def require_columns(columns: Collection[str], settings: Mapping[str, str | None]) -> None:
    """Raises ValueError for the first setting whose column is missing; None means that the setting is off.

    Of a path such as ``reward_model.ground_truth`` the first part must be a column.
    """
    for setting, name in settings.items():
        if name is not None and name not in columns and ("." not in name or name.split(".")[0] not in columns):
            raise ValueError(f"{setting}={name!r} is not a column. Keys found: {', '.join(columns) or 'none'}.")


def as_prompt(value: Any, name: str) -> Prompt:
    """A cell of a dataset as text or messages; an empty or absent cell is the empty text.

    Args:
        value: The cell.
        name: Its column, for the error.

    Raises:
        ValueError: If the cell is neither, or a message has nothing in it, or what chat templates would write as Python does.
    """
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and all(isinstance(m, Mapping) and "role" in m and "content" in m for m in value):
        messages = [_without_fillers(message) for message in value]
        for message in messages:  # chat templates would write the word None
            if message["content"] is None and not any(message[key] for key in message.keys() - {"role", "content"}):
                raise ValueError(
                    f"{name!r} has a message of the {message['role']} with the content null. Give it text, if need be an empty "
                    "one, or leave the row out."
                )
            if message["role"] in SPEAKERS and not _can_be_said(message["content"]):
                raise ValueError(
                    f"{name!r} has a message of the {message['role']} with the content {_shortened(message['content'])}, neither "
                    "text nor a list of parts such as {'type': 'text', 'text': ...}. Make text of it."
                )
        return messages
    raise ValueError(
        f"{name!r} holds {_shortened(value)}, neither text nor a list of messages with 'role' and 'content'."
        f"{_what_to_change(value)}"
    )


FOREIGN_KEYS = {"role": ("from", "speaker", "author"), "content": ("value", "text", "message")}
"""What messages of other formats, ShareGPT's first of all, call the two."""


def _what_to_change(value: Any) -> str:
    """A sentence with a space before it about a cell that is no prompt; nothing where the error says all."""
    if isinstance(value, Mapping):
        return " Put the message into a list." if {"role", "content"} <= value.keys() else ""
    if not isinstance(value, list):
        return ""
    number, odd = next(
        (n, m) for n, m in enumerate(value) if not isinstance(m, Mapping) or {"role", "content"} - m.keys()
    )
    if not isinstance(odd, Mapping):
        return f" Entry {number} is no message: write {{'role': 'user', 'content': {_shortened(odd)}}}."
    renamed = []
    for key in FOREIGN_KEYS:
        foreign = next((each for each in FOREIGN_KEYS[key] if each in odd), None)
        if key not in odd:
            renamed.append(f"add {key}" if foreign is None else f"rename {foreign} to {key}")
    who = ", human to user and gpt to assistant" if odd.get("from") in ("human", "gpt") else ""
    return (
        f" Message {number} has {', '.join(map(str, odd)) or 'nothing'}: {' and '.join(renamed)}{who}, in the file or in a converter "
        "of yours (data.converter: my_data.my_function)."
    )


def asked(prompt: Prompt, completion: Prompt) -> Prompt:
    """The prompt as what the completion follows: before messages a text is one of the user.

    Args:
        prompt: In its final form.
        completion: Behind it.
    """
    return prompt if isinstance(completion, str) or isinstance(prompt, list) else [{"role": "user", "content": prompt}]


def _can_be_said(content: Any) -> bool:
    if content is None or isinstance(content, str):
        return True
    return isinstance(content, list) and all(
        isinstance(part, Mapping) and (part.get("type") != "text" or isinstance(part.get("text"), str))
        for part in content
    )


def _without_fillers(message: Mapping[str, Any]) -> Message:
    # Arrow gives every message of a column the same keys; templates treat a key that holds None as present.
    return {key: value for key, value in message.items() if value is not None or key == "content"}


def _shortened(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."
