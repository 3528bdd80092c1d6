"""Prompts and completions as the text that a scoring model reads, in its own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpo_lightning.messages import Message, Prompt, as_read
from grpo_lightning.rewards.base import Completion, completion_text


def prompt_text(prompt: Prompt, tokenizer: Any | None = None) -> str:
    """The prompt up to where the completion starts; without a template, each message's content on its own line."""
    if isinstance(prompt, str):
        return prompt
    if tokenizer is not None and getattr(tokenizer, "chat_template", None):
        return _rendered(prompt, tokenizer, add_generation_prompt=True)
    return "\n".join(completion_text([{**message, "role": "assistant"}]) for message in prompt) + "\n"


def conversation(prompt: Prompt, completion: Completion) -> list[dict[str, Any]]:
    """Prompt and completion as messages, whatever form they have."""
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    after = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else list(completion)
    return before + after


def whole_text(prompt: Prompt, completion: Completion, tokenizer: Any | None = None) -> str:
    """Prompt and completion in the scoring model's chat template; where it has none, one after the other."""
    if tokenizer is not None and getattr(tokenizer, "chat_template", None):
        return _rendered(conversation(prompt, completion), tokenizer)
    return prompt_text(prompt) + completion_text(completion)


def _rendered(messages: Sequence[Message], tokenizer: Any, **options: Any) -> str:
    (chat,) = as_read([messages], tokenizer, {})
    text: str = tokenizer.apply_chat_template(chat, tokenize=False, **options)
    return text
