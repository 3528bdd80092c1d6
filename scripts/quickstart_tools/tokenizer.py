"""The tokenizer of the quickstart with tools: one token for each digit, sign and role, and for each piece of a call."""

from __future__ import annotations

from character_tokenizer import character_tokenizer
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
CALL = ['<tool_call>{"name": "', "add", "subtract", '", "arguments": {"a": ', ', "b": ', "}}</tool_call>"]
TAGS = ["<answer>", "</answer>", *CALL]

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% for call in message.get('tool_calls') or [] %}"
    """{{ '<tool_call>{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson """
    "+ '}</tool_call>' }}{% endfor %}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 28 tokens; the pieces of a call are single tokens, yet no special ones: decoding keeps them.

    Example:
        >>> tokenizer = build_tokenizer()
        >>> text = '<tool_call>{"name": "add", "arguments": {"a": 12, "b": 5}}</tool_call>'
        >>> ids = tokenizer(text).input_ids
        >>> len(ids), tokenizer.decode(ids, skip_special_tokens=True) == text
        (8, True)
    """
    return character_tokenizer(SPECIAL, TAGS, CHAT_TEMPLATE, SPECIAL[2:])
