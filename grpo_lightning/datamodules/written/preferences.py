"""Completions that people compared or judged, as token ids in the form of rollouts: pairs share their prompt."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo_lightning.datamodules.written.demonstrations import COLUMN, WrittenSettings, demonstrations
from grpo_lightning.errors import RefusedRowError, refusing_rows
from grpo_lightning.types import PromptBatch, Rollouts

CHOSEN, REJECTED, LABEL = "chosen", "rejected", "label"
"""Columns of the dataset: two completions, or one (``COLUMN``) with a label."""


@dataclass(frozen=True)
class Preferences:
    """N completions and how people liked them. CPU tensors."""

    rollouts: Rollouts
    """In pairs, completion 2p is the chosen one of pair p and 2p + 1 the rejected: one group."""
    is_chosen: Tensor
    """(N,) bool."""
    in_pairs: bool

    @property
    def per_example(self) -> int:
        """Completions of an example: 2 of a pair, else 1."""
        return 2 if self.in_pairs else 1

    @property
    def num_examples(self) -> int:
        """Pairs, or completions."""
        return self.rollouts.num_completions // self.per_example

    def examples(self) -> Rollouts:
        """Each pair as one completion, end to end: for whatever must not tear pairs apart."""
        if not self.in_pairs:
            return self.rollouts
        lengths, count = self.rollouts.completion_lengths, self.num_examples
        return replace(
            self.rollouts,
            completion_lengths=lengths.view(count, 2).sum(1),
            group=self.rollouts.group[0::2],
            truncated=self.rollouts.truncated[0::2],
        )

    def rows_of(self, examples: Tensor) -> Tensor:
        """Completions of these examples."""
        return torch.stack([2 * examples, 2 * examples + 1], dim=1).flatten() if self.in_pairs else examples

    def last_completions(self) -> list[Tensor]:
        """Tokens of those of the last example."""
        return self.rollouts.completions()[-self.per_example :]

    def mismatched(self, before: list[Tensor]) -> Rollouts:
        """Each prompt with the completion of the prompt before it (KTO).

        Args:
            before: What the first one gets: the last completions of the rank before, or of these examples themselves.
        """
        completions = [*before, *self.rollouts.completions()[: -self.per_example]]
        ids = torch.cat(completions)
        return replace(
            self.rollouts,
            completion_ids=ids,
            completion_lengths=torch.tensor([each.numel() for each in completions]),
            sampling_logprobs=torch.zeros(ids.numel()),
            completion_mask=torch.ones(ids.numel(), dtype=torch.bool),
        )


def read_preferences(
    batch: PromptBatch,
    tokenizer: PreTrainedTokenizerBase,
    settings: WrittenSettings,
    in_pairs: bool,
    ends: Collection[int] = (),
) -> Preferences:
    """The rows as pairs, or as completions with labels; losses of single completions take the two of a pair as well.

    Args:
        batch: Prompts with the columns ``chosen`` and ``rejected``, or ``completion`` and ``label``.
        tokenizer: Of the policy.
        settings: See there.
        in_pairs: Whether the loss compares the completions of a prompt.
        ends: As for ``demonstrations``.

    Raises:
        RefusedRowError: If the columns are missing, or a row holds something else.
    """
    if not len(batch):  # of a rank that has none of the last held-out rows
        return Preferences(Rollouts.from_lists([], [], [], [], []), torch.zeros(0, dtype=torch.bool), in_pairs)
    columns = batch.columns

    def read(column: str) -> Rollouts:
        one = replace(batch, columns={**columns, COLUMN: columns[column]})
        return demonstrations(one, tokenizer, settings, ends)

    if CHOSEN in columns and REJECTED in columns:
        rollouts = _side_by_side(read(CHOSEN), read(REJECTED))
        return Preferences(rollouts, torch.arange(rollouts.num_completions) % 2 == 0, True)
    with refusing_rows():  # a stream's columns show here
        check_columns(columns, in_pairs)
    for uid, label in zip(batch.uids, columns[LABEL], strict=True):
        if label not in (True, False):
            raise RefusedRowError(
                f"row {uid} has the label {label!r}. Use true for a good completion, false for a bad one."
            )
    return Preferences(read(COLUMN), torch.tensor([bool(label) for label in columns[LABEL]]), False)


def check_columns(columns: Collection[str], in_pairs: bool) -> None:
    """Refuses data without two completions of a prompt, or where the loss takes them single ones with labels.

    Raises:
        ValueError: With a way out.
    """
    if {CHOSEN, REJECTED} <= set(columns) or (not in_pairs and {COLUMN, LABEL} <= set(columns)):
        return
    needed = "chosen and rejected" if in_pairs else "chosen and rejected, or completion and label"
    raise ValueError(
        f"The dataset needs the columns {needed}, and has {', '.join(columns) or 'prompts only'}. Name them with "
        "data.converter=dpo (chosen_key, rejected_key)"
        + (
            ", or set model.loss_type=kto for single completions with labels."
            if in_pairs
            else " or data.converter=kto."
        )
    )


def _side_by_side(chosen: Rollouts, rejected: Rollouts) -> Rollouts:
    """Both completions of each prompt, next to each other."""
    pairs = [list(pair) for pair in zip(chosen.completions(), rejected.completions(), strict=True)]
    both = [completion for pair in pairs for completion in pair]
    return replace(
        chosen,
        completion_ids=torch.cat(both) if both else chosen.completion_ids,
        completion_lengths=torch.tensor([len(each) for each in both], dtype=torch.int64),
        group=torch.arange(chosen.num_prompts).repeat_interleave(2),
        sampling_logprobs=torch.full((sum(map(len, both)),), float("nan")),
        truncated=torch.stack([chosen.truncated, rejected.truncated], dim=1).flatten(),
        completion_mask=torch.ones(sum(map(len, both)), dtype=torch.bool),
    )
