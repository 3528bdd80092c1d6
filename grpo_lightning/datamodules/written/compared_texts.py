"""Pairs as texts that a reward model reads: the very tokens that the reward ``reward_model`` will give it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from grpo_lightning.datamodules.prompts.chat_templates import applying_template
from grpo_lightning.datamodules.written.preferences import CHOSEN, REJECTED, Preferences
from grpo_lightning.errors import RefusedRowError, refusing_rows
from grpo_lightning.rewards.text.chat_text import whole_text
from grpo_lightning.types import PromptBatch, Rollouts

MARGIN = "margin"
"""Column of the dataset: by how much the chosen text should earn more."""


def compared_texts(batch: PromptBatch, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Preferences:
    """The batch's pairs: what the two texts of a pair begin with is their prompt, and one token stands behind each text.

    Args:
        batch: Prompts with the columns ``chosen`` and ``rejected``.
        tokenizer: Of the reward model.
        max_length: Tokens; a longer text loses its beginning, as for the reward.

    Raises:
        RefusedRowError: If the columns are missing, a margin is none, the chat template fails on a text or a text has no
            token.
    """
    if len(batch):
        with refusing_rows():  # a stream's columns show here
            check_compared(batch.columns, batch.uids)
    prompts: list[list[int]] = []
    completions: list[list[int]] = []
    group: list[int] = []
    columns = [batch.columns[name] for name in (CHOSEN, REJECTED)] if len(batch) else [[], []]
    for uid, prompt, *pair in zip(batch.uids, batch.prompts, *columns, strict=True):
        with refusing_rows():
            what = f"prompt and completion of row {uid}"
            texts = [text_ids(prompt, completion, tokenizer, max_length, what) for completion in pair]
        if not all(texts):
            raise RefusedRowError(f"row {uid} has a text of no tokens. Leave it out.")
        shared = _shared_length(*texts)
        if shared:
            prompts.append(texts[0][:shared])
        for text in texts:
            if not shared:  # each begins with a prompt of its own
                prompts.append(text[:1])
            group.append(len(prompts) - 1)
            completions.append([*text[max(shared, 1) :], int(tokenizer.pad_token_id)])
    nothing_sampled = [[0.0] * len(ids) for ids in completions]
    rollouts = Rollouts.from_lists(prompts, completions, nothing_sampled, [False] * len(completions), group)
    return Preferences(rollouts, torch.arange(len(completions)) % 2 == 0, in_pairs=True)


def check_compared(columns: Mapping[str, Sequence[Any]], uids: Sequence[int]) -> None:
    """Refuses data without pairs, or with margins that are none.

    Args:
        columns: Values by name; only those of ``margin`` are looked at.
        uids: Numbers of the rows.

    Raises:
        ValueError: With a way out.
    """
    if not {CHOSEN, REJECTED} <= set(columns):
        raise ValueError(
            f"The dataset needs the columns chosen and rejected, and has {', '.join(columns) or 'prompts only'}. Name "
            "them with data.converter=dpo and data.converter_args.chosen_key and rejected_key."
        )
    for uid, margin in zip(uids, columns.get(MARGIN) or [0.0] * len(uids), strict=True):
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
            raise ValueError(
                f"The column margin holds {margin!r:.80}, and not a finite number in every row: see row {uid}. Correct it, or rename "
                "it where it is no margin between the rewards."
            )


def text_ids(
    prompt: Any, completion: Any, tokenizer: PreTrainedTokenizerBase, max_length: int | None, what: str
) -> list[int]:
    """Token ids of prompt and completion in the model's chat template, where it has one, up to what pads texts.

    Args:
        prompt, completion: Text or messages.
        tokenizer: Of the reward model.
        max_length: As for ``compared_texts``.
        what: Prompt and completion are, for errors.

    Raises:
        ValueError: If the chat template fails.
    """
    with applying_template(what) if tokenizer.chat_template else nullcontext():
        text = whole_text(prompt, completion, tokenizer)
    # A template writes its own special tokens; plain text gets those that the tokenizer adds.
    ids: list[int] = tokenizer(text, add_special_tokens=not tokenizer.chat_template).input_ids
    while (
        ids and ids[-1] == tokenizer.pad_token_id
    ):  # classifiers take such a token for padding, and read the one before
        ids = ids[:-1]
    return ids if max_length is None else ids[-max_length:]


def _shared_length(left: Sequence[int], right: Sequence[int]) -> int:
    length = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        length += 1
    return length
