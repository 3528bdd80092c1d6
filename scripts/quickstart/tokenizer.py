"""The quickstart's own tokenizer: one token for each character, each tag and each role."""

from __future__ import annotations

from character_tokenizer import character_tokenizer
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 23 tokens whose tags are single tokens, yet no special ones: decoding keeps them.

    Example:
        >>> tokenizer = build_tokenizer()
        >>> text = "<think>7+5=12</think><answer>12</answer>"
        >>> ids = tokenizer(text).input_ids
        >>> len(ids), tokenizer.decode(ids, skip_special_tokens=True) == text
        (12, True)
    """
    return character_tokenizer(SPECIAL, TAGS, CHAT_TEMPLATE, ["<|system|>", "<|user|>", "<|assistant|>"])
