"""Written completions as token ids, in the form of rollouts, so that the one scorer serves imitation too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from grpo_lightning.datamodules.tokenization import TEMPLATE_KWARGS, TOOLS, row_template_kwargs
from grpo_lightning.types import Message, Prompt, PromptBatch, Rollouts

COLUMN = "completion"
"""Of the dataset: text, or the messages that follow the prompt's."""


def demonstrations(
    batch: PromptBatch, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: Mapping[str, Any], max_length: int
) -> Rollouts:
    """The rows' completions as rollouts: one per prompt, ended by the end-of-sequence token.

    Args:
        batch: Prompts with the column ``completion``.
        tokenizer: Of the policy.
        chat_template_kwargs: As for the prompts.
        max_length: Longer completions are cut off, and then not ended.

    Raises:
        ValueError: If a row has no completion, or its chat template writes the prompt otherwise once a completion
            follows.
    """
    if COLUMN not in batch.columns:
        raise ValueError(
            f"The dataset has no column {COLUMN!r} to learn from, only {', '.join(batch.columns) or 'prompts'}. Name it "
            "with data.converter=sft and data.converter_args.completion_key."
        )
    own = {name: batch.columns[name] for name in (TOOLS, TEMPLATE_KWARGS) if name in batch.columns}
    options = [
        row_template_kwargs({name: values[b] for name, values in own.items()}, chat_template_kwargs)
        for b in range(len(batch))
    ]
    ids = [
        completion_ids(prompt, prompt_ids, completion, tokenizer, kwargs, f"row {uid}")
        for prompt, prompt_ids, completion, kwargs, uid in zip(
            batch.prompts, batch.prompt_ids, batch.columns[COLUMN], options, batch.uids, strict=True
        )
    ]
    kept = [row[:max_length] for row in ids]
    return Rollouts.from_lists(
        batch.prompt_ids,
        kept,
        [[float("nan")] * len(row) for row in kept],  # nothing was sampled
        [len(row) > max_length for row in ids],
        list(range(len(kept))),
    )


def completion_ids(
    prompt: Prompt,
    prompt_ids: Sequence[int],
    completion: Any,
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: Mapping[str, Any],
    place: str,
) -> list[int]:
    """The tokens that follow a prompt's, up to and with the end-of-sequence token.

    Text is tokenised on its own and appended. Messages go through the chat template together with the prompt's, and
    what it writes behind the prompt counts, up to the last end-of-sequence token: generation stops there.

    Raises:
        ValueError: Naming the place, if prompt and completion do not fit together.
    """
    if not completion or not isinstance(completion, str | list):
        raise ValueError(f"{place} has the completion {completion!r}. Give text, or a list of messages.")
    if isinstance(prompt, str):
        if not isinstance(completion, str):
            raise ValueError(f"{place} has a text prompt and a conversational completion. Use one form.")
        return [*tokenizer(completion, add_special_tokens=False).input_ids, _eos(tokenizer)]
    messages = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    return _rest_of_chat([*prompt, *messages], prompt_ids, tokenizer, chat_template_kwargs, place)


def _rest_of_chat(
    chat: list[Message],
    prompt_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: Mapping[str, Any],
    place: str,
) -> list[int]:
    options = {**chat_template_kwargs, "tokenize": True, "return_dict": True}
    encoded: Any = tokenizer.apply_chat_template(chat, **options)
    whole, start = list(encoded["input_ids"]), len(prompt_ids)
    if whole[:start] != list(prompt_ids):
        raise ValueError(
            f"{place}: with the completion behind it, the chat template writes the prompt otherwise than for generation. "
            "Set model.chat_template_kwargs so that both agree (enable_thinking, for one), or use text prompts."
        )
    rest, eos = whole[start:], _eos(tokenizer)
    if eos in rest:
        return rest[: len(rest) - rest[::-1].index(eos)]
    return [*rest, eos]


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    assert tokenizer.eos_token_id is not None  # load_tokenizer has refused it otherwise
    return int(tokenizer.eos_token_id)
