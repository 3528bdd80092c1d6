"""Several datasets in one: the places of their prompts side by side."""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.types import PromptBatch


class MixedPrompts:
    """The prompts of several datasets, one after the other, as if they were one.

    Args:
        parts: Prompts by the name of their dataset.

    Raises:
        ValueError: If some are text and some conversations.
    """

    def __init__(self, parts: Mapping[str, PromptDataset]) -> None:
        self.parts = dict(parts)
        forms = {name: part.is_conversational for name, part in self.parts.items()}
        if len(set(forms.values())) > 1:
            chats = ", ".join(name for name, is_chat in forms.items() if is_chat)
            texts = ", ".join(name for name, is_chat in forms.items() if not is_chat)
            raise ValueError(
                f"data.datasets mixes conversations ({chats}) and text ({texts}). Set conversational in the converter_args "
                f"of {texts} to true."
            )
        several = list(self.parts.values())
        self.name = "data.datasets"
        self.is_conversational = several[0].is_conversational
        self.num_dropped = sum(part.num_dropped for part in several)
        self.lengths = [length for part in several for length in part.lengths]
        """Tokens of each prompt."""
        self.image_tokens = [count for part in several for count in part.image_tokens]
        """Those that images take the place of."""
        self.columns = tuple(dict.fromkeys(column for part in several for column in part.columns))
        """Names of the columns for the rewards; None in rows of datasets that lack one."""
        self.starts = [0, *accumulate(map(len, several))][:-1]
        """Place of each dataset's first prompt."""
        self._first_uids = [0, *accumulate(part.num_rows for part in several)][:-1]
        self.uids = [first + uid for first, part in zip(self._first_uids, several, strict=True) for uid in part.uids]
        """Numbers that differ between all rows of all datasets."""

    def __len__(self) -> int:
        return len(self.uids)

    @property
    def checksum(self) -> int:
        """CRC-32 of the datasets' checksums, in order: it changes with the tokens of any prompt and with the split into datasets."""
        return zlib.crc32(repr([part.checksum for part in self.parts.values()]).encode())

    @property
    def column_checksums(self) -> dict[str, int]:
        """Of each dataset's columns, as ``dataset/column``."""
        return {
            f"{name}/{column}": value
            for name, part in self.parts.items()
            for column, value in part.column_checksums.items()
        }

    def batch(self, places: Sequence[int]) -> PromptBatch:
        """The prompts at these places in [0, len(self)), with a column None where a row lacks it."""
        several, owners = list(self.parts.values()), [bisect_right(self.starts, place) - 1 for place in places]
        single = [several[k].batch([place - self.starts[k]]) for k, place in zip(owners, places, strict=True)]
        joined = join_batches(single, self.columns)
        joined.uids = [self._first_uids[k] + uid for k, uid in zip(owners, joined.uids, strict=True)]
        return joined

    def values(self, column: str) -> list[Any]:
        """What a column has at each place, None where a row lacks it; not to be changed."""
        return [value for part in self.parts.values() for value in part.values(column)]

    def dataset_of(self, uid: int) -> int:
        """Which dataset a prompt is from, counted from 0."""
        return bisect_right(self._first_uids, uid) - 1


def prompts_in_memory(datamodule: Any) -> list[PromptDataset | MixedPrompts]:
    """All that a run has read before it starts, to train on and held out; nothing of streams and of other sources."""
    training = getattr(datamodule, "train_prompts", None)
    held_out = (getattr(datamodule, "eval_prompts", None) or {}).values()
    return [prompts for prompts in (training, *held_out) if prompts is not None]


def join_batches(parts: Sequence[PromptBatch], columns: Sequence[str]) -> PromptBatch:
    """All prompts of the parts, in order, with these columns: None where a part lacks one."""

    def cells(part: PromptBatch, column: str) -> list[Any]:
        return part.columns.get(column, [None] * len(part))

    return PromptBatch(
        prompts=[prompt for part in parts for prompt in part.prompts],
        prompt_ids=[ids for part in parts for ids in part.prompt_ids],
        uids=[uid for part in parts for uid in part.uids],
        columns={column: [value for part in parts for value in cells(part, column)] for column in columns},
        images=tuple(images for part in parts for images in part.images),
    )
