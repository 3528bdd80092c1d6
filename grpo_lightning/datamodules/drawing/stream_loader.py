"""Loader of prompt batches from a stream, whose place in it is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from grpo_lightning.datamodules.drawing.other_prompts import noted
from grpo_lightning.datamodules.drawing.places import OtherDataError, training_rows
from grpo_lightning.datamodules.drawing.stream_reader import MakePrompts, StreamReader
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.prompts.mixture import join_batches
from grpo_lightning.datamodules.sources.row_stream import START, Cursor, RowStream
from grpo_lightning.errors import ExplainedError
from grpo_lightning.types import PromptBatch


class ShortStreamError(ExplainedError, ValueError):
    """A whole pass over a stream does not fill a step: training would read it again and again, for ever."""


class StreamLoader:
    """Batches of a stream, pass after pass; the place in it is saved and restored with checkpoints.

    Rows are read in blocks. The prompts of a block are shuffled among each other, in an order that is a function of (seed,
    epoch, the block's first row), so that a checkpoint needs no buffer: the block is read again. Every rank reads the whole
    stream and takes its part of each step.

    Args:
        stream: The rows.
        make_prompts: Makes a block's prompts.
        batch_size: Prompts on each rank in each step.
        rank, world_size: Of this process.
        seed: Of the orders; None keeps the stream's.
        block_size: Rows of a block.
        steps_trained: Says how many batches of this epoch have been trained on. Lightning fetches one ahead where it does
            not know how many there are; what it has fetched and not trained on is handed out again. None outside of it.
        count_anew: Makes it count the batches of the next epoch from 0, where it goes on from the end of one.
    """

    def __init__(
        self,
        stream: RowStream,
        make_prompts: MakePrompts,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int | None = 0,
        block_size: int = 1024,
        steps_trained: Callable[[], int | None] = lambda: None,
        count_anew: Callable[[], None] = lambda: None,
    ) -> None:
        self.stream, self.make_prompts = stream, make_prompts
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.seed, self.block_size = seed, block_size
        self.steps_trained, self.count_anew = steps_trained, count_anew
        self.epoch = self.next_batch = 0
        self._counted_before = 0  # of what Lightning counts, batches that were no batches of this epoch
        self._open(dict(START), 0)

    def _open(self, cursor: Cursor, used: int, note: Mapping[str, Any] | None = None) -> None:
        self._reader = StreamReader(
            self.stream, self.make_prompts, self.block_size, self.seed, self.epoch, cursor, used, note
        )
        self._places: dict[int, dict[str, Any]] = {self.next_batch: self._reader.place()}
        self._batches: dict[int, PromptBatch] = {}
        self._is_over = False

    def __iter__(self) -> Iterator[PromptBatch]:
        # Lightning makes iterators, and fetches from them, that it does not use: each starts behind what was trained on.
        if self._is_over and self.steps_trained() is None:
            self.set_epoch(self.epoch + 1)
        self.next_batch = self._next_to_train()
        while (batch := self._batch(self.next_batch)) is not None:
            self.next_batch += 1
            yield batch

    def _next_to_train(self) -> int:
        trained = self.steps_trained()
        if trained is None:
            return self.next_batch
        if trained >= self._counted_before:
            trained -= self._counted_before
        return min(self.next_batch, max(trained, min(self._places)))

    def _batch(self, index: int) -> PromptBatch | None:
        """This rank's part of a step that is the next to be read, or was read and not yet trained on."""
        if index not in self._batches:
            if self._is_over or not self._read(index):
                return None
            for old in [i for i in self._batches if i < self._next_to_train()]:
                del self._batches[old], self._places[old]
        return self._batches[index]

    def _read(self, index: int) -> bool:
        needed = self.batch_size * self.world_size
        taken = self._reader.take(needed)
        if len(taken) < needed:  # the rest of a pass is left out
            self._is_over = True
            if index == 0:
                raise self._short(len(taken))
            return False
        columns = list(dict.fromkeys(column for prompts, _ in taken for column in prompts.columns))
        mine = training_rows(0, self.batch_size, self.rank, self.world_size)
        parts = [prompts.batch([place]) for prompts, place in taken[mine.start : mine.stop]]
        self._batches[index] = join_batches(parts, columns)
        self._places[index + 1] = self._reader.place()
        return True

    def _short(self, found: int) -> ShortStreamError:
        rows, ranks = self._reader.rows_read, f" on each of {self.world_size} devices" if self.world_size > 1 else ""
        dropped = f" ({rows - found} of its {rows} rows are longer than data.max_prompt_length)" if rows > found else ""
        return ShortStreamError(
            f"data.batch_size={self.batch_size} prompts{ranks} need {self.batch_size * self.world_size} prompts for a step, but "
            f"a whole pass over {self.stream.name} has {found}{dropped}. Use a smaller data.batch_size or fewer devices"
            f"{', raise data.max_prompt_length' if dropped else ''}, or bring more data."
        )

    @property
    def sampler(self) -> StreamLoader:
        """Itself: Lightning calls ``loader.sampler.set_epoch`` at the start of every epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch, unless it is the current one: a resumed epoch goes on where it was."""
        if epoch != self.epoch:
            self.epoch, self.next_batch, self._counted_before = epoch, 0, 0
            self._open(dict(START), 0)
        elif self._counted_before:
            self._counted_before = 0
            self.count_anew()

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the next batch to train on and where it lies, and what must be the same for that to mean the same."""
        index = self._next_to_train()
        place = {"epoch": self.epoch, "next_batch": index, **self._places[index]}
        if isinstance(place["block"], PromptDataset):  # only here: a block that no checkpoint lies in is not summed up
            place["block"] = noted(place["block"])
        if self._is_over and index not in self._batches:
            # Lightning fetches from the loader before it sets the epoch, and would find the old one at its end.
            place = {"epoch": self.epoch + 1, "next_batch": 0, "cursor": dict(START), "used": 0}
        return place | self._identity()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a saved place; where other prompts lie there now, with a warning once they are read.

        Raises:
            OtherDataError: If it was a place in other data, or in another order.
        """
        if "cursor" not in state:
            raise OtherDataError(
                "The checkpoint's data was read as a whole, and data.streaming is true. Use the data settings of the first run."
            )
        now = self._identity()
        changed = [f"{key} was {state.get(key)} and is {now[key]}" for key in now if state.get(key) != now[key]]
        if changed:
            raise OtherDataError(
                f"The checkpoint was written inside a stream that cannot be continued: {', '.join(changed)}. Use the data "
                "settings of the first run."
            )
        self.epoch, self.next_batch = state["epoch"], state["next_batch"]
        # Until set_epoch, a run that goes on from the end of an epoch has that epoch's count.
        self._counted_before = (self.steps_trained() or self.next_batch) - self.next_batch
        self._open(state["cursor"], state["used"], state.get("block"))

    def _identity(self) -> dict[str, Any]:
        return {"data.seed": self.seed, "data.shuffle_block": self.block_size}


def check_can_stream(module: Any) -> None:
    """Raises ValueError if a module asks for prompts that a stream has not read.

    Args:
        module: The LightningModule, or None.
    """
    if getattr(getattr(module, "settings", None), "async_rollouts", 0):
        raise ValueError(
            "data.streaming reads the next prompts when they are needed, and model.async_rollouts=1 wants them a step before. "
            "Use one of the two."
        )
    dynamic = getattr(getattr(module, "settings", None), "dynamic_sampling", None)
    if dynamic is not None and dynamic.mode == "refill":
        raise ValueError(
            "model.dynamic_sampling.mode=refill draws further prompts from anywhere in the data, which data.streaming has not "
            "read. Use mode=drop, or streaming: false."
        )
