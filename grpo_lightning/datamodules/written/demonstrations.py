"""Written completions as token ids, in the form of rollouts, so that the one scorer serves imitation too."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from grpo_lightning.datamodules.prompts.chat_templates import TEMPLATE_KWARGS, TOOLS, chat_ids, row_template_kwargs
from grpo_lightning.datamodules.prompts.converted_rows import replaced_text
from grpo_lightning.errors import RefusedRowError, refusing_rows
from grpo_lightning.types import Message, Prompt, PromptBatch, Rollouts

COLUMN = "completion"
"""Of the dataset: text, or the messages that follow the prompt's."""


@dataclass(frozen=True, kw_only=True)
class WrittenSettings:
    """How completions that the data has written are read.

    Args:
        max_completion_length: Tokens; longer completions are cut off.
        chat_template_kwargs: Further arguments of the chat template (such as enable_thinking).
    """

    max_completion_length: int = 2048
    chat_template_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.max_completion_length < 1:
            raise ValueError(f"model.max_completion_length={self.max_completion_length} holds no token. Use 1 or more.")


def demonstrations(
    batch: PromptBatch, tokenizer: PreTrainedTokenizerBase, settings: WrittenSettings, ends: Collection[int] = ()
) -> Rollouts:
    """The rows' completions as rollouts: one per prompt, ended by an end-of-sequence token.

    Args:
        batch: Prompts with the column ``completion``.
        tokenizer: Of the policy.
        settings: Of which completions that are cut off are not ended.
        ends: What ends a completion when it is generated, beside the tokenizer's end of sequence.

    Raises:
        RefusedRowError: If the data has no completions or a row has none, or its chat template fails on one or writes the
            prompt otherwise once a completion follows.
    """
    with refusing_rows():  # a stream's columns show here
        check_demonstrated(batch.columns)
    assert tokenizer.eos_token_id is not None  # load_tokenizer has refused it otherwise
    eos = int(tokenizer.eos_token_id)
    stops = {eos, *ends}
    own = {name: batch.columns[name] for name in (TOOLS, TEMPLATE_KWARGS) if name in batch.columns}
    completions = batch.columns[COLUMN]
    for b, completion in enumerate(completions):
        _check_form(batch.prompts[b], completion, f"row {batch.uids[b]}")
    is_chat = [not isinstance(prompt, str) for prompt in batch.prompts]
    in_chats = [b for b in range(len(batch)) if is_chat[b]]
    chats = [_whole_chat(batch.prompts[b], completions[b]) for b in in_chats]
    options = [
        row_template_kwargs({name: values[b] for name, values in own.items()}, settings.chat_template_kwargs or {})
        for b in in_chats
    ]
    with refusing_rows():
        wholes = iter(_encoded_chats(chats, options, [batch.uids[b] for b in in_chats], tokenizer))
    texts = iter(_encoded_texts([completions[b] for b in range(len(batch)) if not is_chat[b]], tokenizer))
    ids = [
        _rest_of_chat(next(wholes), batch.prompt_ids[b], completions[b], stops, tokenizer, f"row {batch.uids[b]}")
        if is_chat[b]
        else next(texts)
        for b in range(len(batch))
    ]
    ids = [_ended(row, stops, eos) for row in ids]
    longest = settings.max_completion_length
    kept = [row[:longest] for row in ids]
    return Rollouts.from_lists(
        batch.prompt_ids,
        kept,
        [[float("nan")] * len(row) for row in kept],  # nothing was sampled
        [len(row) > longest for row in ids],
        list(range(len(kept))),
    )


def check_demonstrated(columns: Collection[str]) -> None:
    """Refuses data without completions.

    Raises:
        ValueError: With a way out.
    """
    if COLUMN not in columns:
        raise ValueError(
            f"The dataset has no column {COLUMN!r} to learn from, only {', '.join(columns) or 'prompts'}. Name it "
            "with data.converter=sft and data.converter_args.completion_key."
        )


def with_replaced(batch: PromptBatch, columns: Sequence[str], replacements: Mapping[str, str]) -> PromptBatch:
    """The batch with text replaced in these columns, where it has them, as in the prompts.

    Args:
        batch: As the data has it.
        columns: What is written.
        replacements: Old text by new, in their order.
    """
    written = {name: batch.columns[name] for name in columns if name in batch.columns}
    if not replacements or not written:
        return batch
    replaced = {name: [replaced_text(each, replacements) for each in values] for name, values in written.items()}
    return replace(batch, columns={**batch.columns, **replaced})


def _check_form(prompt: Prompt, completion: Any, place: str) -> None:
    if not completion or not isinstance(completion, str | list):
        raise RefusedRowError(f"{place} has the completion {completion!r}. Give text, or a list of messages.")
    if isinstance(prompt, str) and not isinstance(completion, str):
        raise RefusedRowError(f"{place} has a text prompt and a conversational completion. Use one form.")


def _whole_chat(prompt: Any, completion: str | list[Message]) -> list[Message]:
    messages = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    return [*prompt, *messages]


def _encoded_chats(
    chats: list[list[Message]], options: list[dict[str, Any]], uids: list[int], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """Token ids of each chat; those with the same arguments of the template in one call, several times as fast."""
    ids: list[list[int]] = [[] for _ in chats]
    groups: list[tuple[dict[str, Any], list[int]]] = []
    for index, own in enumerate(options):
        members = next((members for shared, members in groups if shared == own), None)
        if members is None:
            groups.append((own, [index]))
        else:
            members.append(index)
    for shared, members in groups:
        alike = _encoded_alike([chats[n] for n in members], shared, [uids[n] for n in members], tokenizer)
        for index, row in zip(members, alike, strict=True):
            ids[index] = row
    return ids


def _encoded_alike(
    chats: list[list[Message]], shared: dict[str, Any], uids: list[int], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    try:
        return chat_ids(chats, tokenizer, shared, f"prompt and completion of row {uids[0]}")
    except ValueError:
        if len(chats) == 1:
            raise
    return [_encoded_alike([chat], shared, [uid], tokenizer)[0] for chat, uid in zip(chats, uids, strict=True)]


def _encoded_texts(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [list(row) for row in tokenizer(texts, add_special_tokens=False).input_ids] if texts else []


def _ended(ids: list[int], stops: Collection[int], eos: int) -> list[int]:
    """With a token that ends it: some datasets, and most templates, have written one."""
    return ids if ids and ids[-1] in stops else [*ids, eos]


def _rest_of_chat(
    whole: list[int],
    prompt_ids: Sequence[int],
    completion: str | list[Message],
    stops: Collection[int],
    tokenizer: PreTrainedTokenizerBase,
    place: str,
) -> list[int]:
    """What the chat template writes behind a prompt, up to where generation ends."""
    start = len(prompt_ids)
    if whole[:start] != list(prompt_ids):
        role = "assistant" if isinstance(completion, str) else completion[0]["role"]
        if role != "assistant":
            raise RefusedRowError(
                f"{place} has a completion that begins with a message of the {role}, where the prompt asks for one of the "
                "assistant. Put what comes before the assistant's answer into the prompt."
            )
        raise RefusedRowError(
            f"{place}: with the completion behind it, the chat template writes the prompt otherwise than for generation. "
            "Set model.chat_template_kwargs so that both agree (enable_thinking, for one), or use text prompts."
        )
    rest = whole[start:]
    if isinstance(completion, str) or len(completion) == 1:
        return rest[: next((n for n, token in enumerate(rest, 1) if token in stops), len(rest))]
    return rest[: _end_of_last_turn(rest, stops, tokenizer)]


def _end_of_last_turn(ids: list[int], stops: Collection[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """How many ids there are up to the last stop; up to one before it where no more than white space is in between.

    Phi's templates end a turn, a line and then the text: no turn stands between those two stops.
    """
    ends = [n for n, token in enumerate(ids, 1) if token in stops]
    while len(ends) > 1 and not str(tokenizer.decode(ids[ends[-2] : ends[-1] - 1])).strip():
        ends.pop()
    return ends[-1] if ends else len(ids)
