"""The tokenizer of the quickstart with tools: one token for each digit, sign and role, and for each piece of a call."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
CALL = ['<tool_call>{"name": "', "add", "subtract", '", "arguments": {"a": ', ', "b": ', "}}</tool_call>"]
TAGS = ["<answer>", "</answer>", *CALL]
CHARACTERS = list("0123456789+-=,")

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
    # Byte-level BPE without merges, as AutoTokenizer makes of every Qwen2 model's tokenizer.
    vocabulary = {token: index for index, token in enumerate(SPECIAL + TAGS + CHARACTERS)}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        eos_token="<|end|>",
        extra_special_tokens=SPECIAL[2:],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
