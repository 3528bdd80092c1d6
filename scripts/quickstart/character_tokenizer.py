"""A tokenizer of a quickstart: one token for each character and each tag, none for what a problem does not need."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

CHARACTERS = list("0123456789+-=,")


def character_tokenizer(
    special: Sequence[str], tags: Sequence[str], chat_template: str, roles: Sequence[str]
) -> PreTrainedTokenizerFast:
    """A tokenizer whose tags are single tokens, yet no special ones: decoding keeps them.

    Characters without a token are dropped.

    Args:
        special: Tokens that decoding may leave out.
        tags: Texts of several characters with a token of their own.
        chat_template: In Jinja.
        roles: Those of ``special`` that transformers is told of by name.
    """
    # Byte-level BPE without merges: AutoTokenizer rebuilds the tokenizer of every Qwen2 model as that, whatever
    # class the directory names, and so must find the same.
    vocabulary = {token: index for index, token in enumerate([*special, *tags, *CHARACTERS])}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in tags])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        eos_token="<|end|>",
        extra_special_tokens=list(roles),
        chat_template=chat_template,
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
