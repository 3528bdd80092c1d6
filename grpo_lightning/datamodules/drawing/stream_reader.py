"""One pass over a stream as prompts in the order of training, block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_lightning.datamodules.drawing.other_prompts import say_it_ends, say_what_changed
from grpo_lightning.datamodules.drawing.places import epoch_permutation
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.sources.row_stream import START, Cursor, RowStream
from grpo_lightning.errors import refusing_rows
from grpo_lightning.seeds import derive_seed

MakePrompts = Callable[[Sequence[Mapping[str, Any]], int], PromptDataset]
"""Rows of a block and the number of its first row -> its prompts."""


@dataclass
class StreamReader:
    """Prompts of one epoch in the order of training; ``place`` is where the next one lies."""

    stream: RowStream
    make_prompts: MakePrompts
    block_size: int
    seed: int | None
    epoch: int
    cursor: Cursor = field(default_factory=lambda: dict(START))
    """Of the block at hand."""
    used: int = 0
    """Prompts of that block that have been handed out."""
    note: Mapping[str, Any] | None = None
    """Of a checkpoint: what its run read as that block."""

    def __post_init__(self) -> None:
        self._blocks = self.stream.blocks(self.block_size, self.epoch, self.cursor)
        self._after = self.cursor
        self._prompts: PromptDataset | None = None
        self._order: list[int] = []

    def place(self) -> dict[str, Any]:
        """What a checkpoint holds of the place; ``block`` are the prompts there, or what an earlier checkpoint noted of them."""
        return {"cursor": self.cursor, "used": self.used, "block": self._prompts or self.note}

    @property
    def rows_read(self) -> int:
        """Of the pass, those of the block at hand too."""
        return int(self._after["rows"])

    def take(self, count: int) -> list[tuple[PromptDataset, int]]:
        """The next prompts: a block's, and the place in it; fewer than asked for at the end of the stream."""
        taken: list[tuple[PromptDataset, int]] = []
        while len(taken) < count:
            if self._prompts is None or self.used >= len(self._order):
                if not self._next_block():
                    break
                continue
            places = self._order[self.used : self.used + count - len(taken)]
            taken += [(self._prompts, place) for place in places]
            self.used += len(places)
        return taken

    def _next_block(self) -> bool:
        if self._prompts is not None:
            self.cursor, self.used = self._after, 0
        block = next(self._blocks, None)
        if block is None:
            self._prompts, self._order = None, []
            if self.note is not None:
                say_it_ends(self.stream.name, self.cursor["rows"], self.epoch)
            return False
        rows, self._after = block
        first = self.cursor["rows"]
        with refusing_rows():
            self._prompts = self.make_prompts(rows, first)
        if self.note is not None:
            say_what_changed(self.note, self._prompts, self.epoch)
            self.note = None
        order = epoch_permutation(
            len(self._prompts), derive_seed(self.seed or 0, "block", first), self.epoch, self.seed is not None
        )
        self._order = order.tolist()
        return True
