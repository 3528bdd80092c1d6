"""A question and an answer that stand before what is rendered for its own sake."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_lightning.types import Message

MARK = "7f3aQx"
"""Stands for what the policy said, in a rendering of which only what follows is used."""
ANSWER_MARK = "7f3aQw"
"""Stands for what was answered, in a rendering that shows where that begins."""


def dummy_exchange(messages: Sequence[Message]) -> list[Message]:
    """A question and an answer, with the calls that the messages answer."""
    answer: Message = {"role": "assistant", "content": MARK}
    calls = [
        {
            "type": "function",
            "id": message.get("tool_call_id", f"call{n:05d}"),
            "function": {"name": message.get("name", "tool"), "arguments": {MARK: MARK}},
        }
        for n, message in enumerate(messages)
        if message["role"] == "tool"
    ]
    return [{"role": "user", "content": "?"}, {**answer, "tool_calls": calls} if calls else answer]
