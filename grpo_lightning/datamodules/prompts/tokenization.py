"""Prompts as token ids: chat templates with what each row adds to them, and text without tokens that do not belong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from grpo_lightning.datamodules.prompts.chat_templates import chat_ids, row_template_kwargs

TOKENIZE_ROWS = 1024


def tokenize_prompts(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: Mapping[str, Any],
    name: str,
) -> list[list[int]]:
    """Token ids as TRL's GRPO trainer makes them.

    Conversations go through the chat template with the generation prompt added, and with the row's ``tools`` and
    ``chat_template_kwargs``. Text is tokenised with the tokenizer's own defaults, so a tokenizer that puts a
    beginning-of-sequence token first does so here, once; an end-of-sequence token that it appends is taken off.

    Args:
        rows: With ``prompt``, and maybe the two columns.
        tokenizer: Of the policy.
        chat_template_kwargs: Of all rows; those of a row win.
        name: Where the rows come from; errors quote it.

    Raises:
        ValueError: If text and conversations are mixed, or there are conversations and the tokenizer has no chat
            template or its template fails on them.
    """
    if not rows:
        return []
    conversational = isinstance(rows[0]["prompt"], list)
    for index, row in enumerate(rows):
        if isinstance(row["prompt"], list) != conversational:
            kinds = ("a conversation", "text") if conversational else ("text", "a conversation")
            raise ValueError(
                f"{name}: the prompt of row 0 is {kinds[0]}, that of row {index} is {kinds[1]}. Use one form."
            )
    if not conversational:
        return _tokenized_texts([row["prompt"] for row in rows], tokenizer, name)
    ids: list[list[int]] = []
    for options, chats in _with_equal_options(rows, chat_template_kwargs, name):
        for start in range(0, len(chats), TOKENIZE_ROWS):
            ids.extend(_tokenized_chats(chats[start : start + TOKENIZE_ROWS], tokenizer, options, name))
    return ids


def _with_equal_options(
    rows: Sequence[Mapping[str, Any]], chat_template_kwargs: Mapping[str, Any], name: str
) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """Neighbouring rows whose templates get the same arguments, so that they are tokenised in one call."""
    options = []
    for index, row in enumerate(rows):
        try:
            options.append(row_template_kwargs(row, chat_template_kwargs))
        except ValueError as error:
            raise ValueError(f"{name}, row {index}: {error}") from error
    for equal, pairs in groupby(zip(options, rows, strict=True), key=lambda pair: pair[0]):
        yield equal, [row["prompt"] for _, row in pairs]


def _tokenized_chats(
    chats: list[list[dict[str, Any]]], tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any], name: str
) -> list[list[int]]:
    if tokenizer.chat_template is None and "chat_template" not in kwargs:
        raise ValueError(
            f"{name} has conversational prompts, but the tokenizer {tokenizer.name_or_path!r} has no chat template. "
            "Use model.tokenizer_name_or_path of an instruct model, or text prompts."
        )
    return chat_ids(chats, tokenizer, {"add_generation_prompt": True, **kwargs}, f"the prompts of {name}")


def _tokenized_texts(texts: list[str], tokenizer: PreTrainedTokenizerBase, name: str) -> list[list[int]]:
    ids: list[list[int]] = []
    for start in range(0, len(texts), TOKENIZE_ROWS):
        ids.extend(tokenizer(text=texts[start : start + TOKENIZE_ROWS])["input_ids"])
    plain = [without_doubles(row, text, tokenizer) for row, text in zip(ids, texts, strict=True)]
    begun = sum(
        before[:2] == [tokenizer.bos_token_id] * 2 != after[:2] for before, after in zip(ids, plain, strict=True)
    )
    ended = sum(before[-1:] != after[-1:] for before, after in zip(ids, plain, strict=True))
    if begun:
        rank_zero_warn(
            f"{begun} prompts of {name} start with {tokenizer.bos_token!r}, which the tokenizer adds too: one of the two is "
            "left out. Take it out of the text, with data.replace_text for one."
        )
    if ended:
        rank_zero_warn(
            f"The tokenizer appends {tokenizer.eos_token!r} to {ended} prompts of {name}: it is left out, as completions "
            "follow. Set add_eos_token to false in its tokenizer_config.json."
        )
    return plain


def without_doubles(ids: list[int], text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a text prompt with one beginning-of-sequence token at most, and no end behind the text.

    A text that starts with the token's name gets it twice from a tokenizer that adds it, which no model has seen. Behind an
    end-of-sequence token, a completion would be the start of another document.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and ids[:2] == [bos, bos] and text.startswith(str(tokenizer.bos_token)):
        ids = ids[1:]
    ends = 0 if eos is None else _trailing(ids, eos) - _trailing_text(text, str(tokenizer.eos_token))
    return ids[: len(ids) - ends] if ends > 0 else ids


def _trailing(ids: Sequence[int], token: int) -> int:
    count = 0
    while count < len(ids) and ids[-1 - count] == token:
        count += 1
    return count


def _trailing_text(text: str, token: str) -> int:
    count = 0
    while token and text.endswith(token):
        text, count = text[: -len(token)], count + 1
    return count
