"""The quickstart's own tokenizer: one token for each character, each tag and each role."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
CHARACTERS = list("0123456789+-=,")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 23 tokens whose tags are single tokens, yet no special ones: decoding keeps them.

    Characters that arithmetic does not need have no token and are dropped.

    Example:
        >>> tokenizer = build_tokenizer()
        >>> text = "<think>7+5=12</think><answer>12</answer>"
        >>> ids = tokenizer(text).input_ids
        >>> len(ids), tokenizer.decode(ids, skip_special_tokens=True) == text
        (12, True)
    """
    # Byte-level BPE without merges: AutoTokenizer rebuilds the tokenizer of every Qwen2 model as that, whatever
    # class the directory names, and so must find the same.
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
        extra_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
