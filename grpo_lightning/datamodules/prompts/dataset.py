"""A dataset as prompts ready for generation: converted, templated, tokenised, checked for length."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from typing import Any, Literal

import torch

from grpo_lightning.datamodules.converters import Converter
from grpo_lightning.datamodules.prompts.column_checksums import checksum_of
from grpo_lightning.datamodules.prompts.converted_rows import convert_row, replaced_text
from grpo_lightning.datamodules.prompts.form import PromptForm
from grpo_lightning.datamodules.prompts.shown_images import ShownImages, refuse_images
from grpo_lightning.datamodules.prompts.tokenization import tokenize_prompts
from grpo_lightning.datamodules.sources.rows import without_padding
from grpo_lightning.rewards.base import RESERVED
from grpo_lightning.types import PromptBatch

UNCHANGING = (str, int, float, bool, bytes, type(None))


class PromptDataset:
    """Prompts with their token ids and the columns for the rewards, held in memory.

    Args:
        rows: Raw rows, in the order that numbers them.
        convert: Turns a raw row into one with ``prompt`` and further columns.
        form: How the model reads prompts.
        name: Where the rows come from; errors quote it.
        max_prompt_length: Tokens; None sets no limit.
        overlong_prompts: What happens to longer prompts: ``drop`` leaves them out, ``refuse`` raises.
        first_row: Number of the first of these rows, where they are a part of something larger: a part may be left
            without prompts. None for rows that are all there is.

    Raises:
        ValueError: Naming the source and the row: if a row cannot be converted, has an empty prompt, or is too long and
            refused; if nothing is left; if a column has a name that rewards receive something else under.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        convert: Converter,
        form: PromptForm,
        name: str,
        max_prompt_length: int | None = None,
        overlong_prompts: Literal["drop", "refuse"] = "drop",
        first_row: int | None = None,
    ) -> None:
        self.name = name
        first, is_part = first_row or 0, first_row is not None
        converted = [
            convert_row(row, convert, f"{name}, row {index}") for index, row in enumerate(without_padding(rows), first)
        ]
        for row in converted:
            row["prompt"] = replaced_text(row["prompt"], form.replace_text)
        self._shown: ShownImages | None = None
        if form.image_processing is None:
            refuse_images(converted, name, form.text_stage)
            prompt_ids = tokenize_prompts(converted, form.tokenizer, form.chat_template_kwargs, name)
        else:
            self._shown = ShownImages(form.image_processing, form.chat_template_kwargs, name)
            prompt_ids = self._shown.tokenized(converted, first)
        kept = _fitting(prompt_ids, name, first, max_prompt_length, overlong_prompts)
        if not kept and not is_part:
            raise ValueError(_nothing_left(prompt_ids, name, max_prompt_length))
        self.uids = [first + index for index in kept]
        """Row numbers in the source, of the prompts that were kept."""
        self.num_dropped = len(converted) - len(kept)
        """Prompts left out as too long."""
        self.is_conversational = bool(converted) and isinstance(converted[0]["prompt"], list)
        """Whether prompts are messages, to which the chat template was applied."""
        self.num_rows = len(converted)
        """Rows of the source, kept or not."""
        self.columns = _column_names(converted, name)
        """Names of the columns for the rewards."""
        self.lengths = [len(prompt_ids[index]) for index in kept]
        """Tokens of each kept prompt."""
        self._rows = [converted[index] for index in kept]
        if self._shown is not None:
            self._shown.keep(kept)
        # One tensor: a Python list of small lists takes five times the memory.
        self._ids = torch.tensor([token for index in kept for token in prompt_ids[index]], dtype=torch.int32)
        self._ends = torch.tensor(self.lengths).cumsum(0).tolist()

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def checksum(self) -> int:
        """CRC-32 of the tokens of all kept prompts, in order."""
        return zlib.crc32(torch.tensor(self.lengths).numpy().data, zlib.crc32(self._ids.numpy().data))

    @cached_property
    def column_checksums(self) -> dict[str, int]:
        """Of each column's values in the kept prompts, in order."""
        return {column: checksum_of(self.values(column)) for column in self.columns}

    @property
    def image_tokens(self) -> list[int]:
        """Tokens of each kept prompt that images take the place of."""
        return [0] * len(self) if self._shown is None else self._shown.image_tokens

    def batch(self, places: Sequence[int]) -> PromptBatch:
        """The prompts at these places in [0, len(self)), with a column None where a row lacks it."""
        # Copies: a reward that changes a message or a list in place would change it for all later epochs.
        rows = [_copied(self._rows[place]) for place in places]
        return PromptBatch(
            prompts=[row["prompt"] for row in rows],
            prompt_ids=[self._prompt_ids(place) for place in places],
            uids=[self.uids[place] for place in places],
            columns={name: [row.get(name) for row in rows] for name in self.columns},
            images=() if self._shown is None else self._shown.of_rows(places, rows),
        )

    def values(self, column: str) -> list[Any]:
        """What a column has at each place, None where a row lacks it; not to be changed."""
        return [row.get(column) for row in self._rows]

    def ending_with_the_assistant(self) -> list[int]:
        """Places of the conversations whose last message is the assistant's."""
        if not self.is_conversational:
            return []
        return [place for place, row in enumerate(self._rows) if row["prompt"][-1].get("role") == "assistant"]

    def first_of_roles(self) -> dict[str, tuple[int, int]]:
        """For each role of a message without calls: the place of the first conversation that has one, and where in it.

        A template need not ask for roles: messages without one are not in it.
        """
        found: dict[str, tuple[int, int]] = {}
        for place, row in enumerate(self._rows if self.is_conversational else []):
            for index, message in enumerate(row["prompt"]):
                role = message.get("role")
                if role is not None and role not in found and message.get("content") and not message.get("tool_calls"):
                    found[role] = (place, index)
        return found

    def row(self, place: int) -> dict[str, Any]:
        """The converted row at a place; not to be changed."""
        return self._rows[place]

    def _prompt_ids(self, place: int) -> list[int]:
        end = self._ends[place]
        return self._ids[end - self.lengths[place] : end].tolist()


def _copied(value: Any) -> Any:
    """As ``deepcopy``, in a fraction of the time for what most rows are made of."""
    if type(value) is dict:
        return {name: _copied(each) for name, each in value.items()}
    if type(value) is list:
        return [_copied(each) for each in value]
    return value if isinstance(value, UNCHANGING) else deepcopy(value)


def _nothing_left(prompt_ids: Sequence[list[int]], name: str, limit: int | None) -> str:
    if not prompt_ids:
        return f"{name} has no rows."
    return (
        f"All {len(prompt_ids)} prompts of {name} are longer than data.max_prompt_length={limit} tokens; the shortest has "
        f"{min(map(len, prompt_ids))}. Raise data.max_prompt_length."
    )


def _fitting(prompt_ids: Sequence[list[int]], name: str, first: int, limit: int | None, overlong: str) -> list[int]:
    """Places of the prompts that are kept."""
    kept = []
    for place, ids in enumerate(prompt_ids):
        if not ids:
            raise ValueError(f"{name}, row {place + first} has a prompt of no tokens.")
        if limit is None or len(ids) <= limit:
            kept.append(place)
        elif overlong == "refuse":
            raise ValueError(
                f"{name}, row {place + first} has a prompt of {len(ids)} tokens, above data.max_prompt_length={limit}. Raise it, "
                "or set data.overlong_prompts to drop."
            )
    return kept


def _column_names(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[str, ...]:
    """Names that any row has, in the order of first appearance."""
    names = tuple(dict.fromkeys(column for row in rows for column in row if column != "prompt"))
    taken = [column for column in names if column in RESERVED]
    if taken:
        raise ValueError(
            f"{name} has the column {taken[0]!r}, a name under which rewards receive something else. Rename it, or "
            "list the columns that rewards need in data.converter_args.pass_through."
        )
    return names
