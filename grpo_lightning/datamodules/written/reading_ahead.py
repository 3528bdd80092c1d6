"""Written rows are encoded in a thread while the step before them is computed: a GPU does not wait for a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from grpo_lightning.types import PromptBatch

Read = TypeVar("Read")


class ReadAhead(Generic[Read]):
    """Reads the batch of each step one step ahead; what is read is the same as without it.

    Launch it before the step's last backward pass: the GPU then has the forward pass to do, and what the thread holds up is made
    up for; the end of a backward pass waits for the GPU, and a thread that begins there is waited for as well.

    Args:
        read: A batch to what a step trains on: a function of the batch alone, without collectives. It never runs twice at
            once, since tokenizers cannot be used by two threads.

    Example:
        >>> ahead = ReadAhead(lambda batch: [len(ids) for ids in batch.prompt_ids])
        >>> ahead(PromptBatch(["a"], [[5, 6]], [0]))
        [2]
    """

    def __init__(self, read: Callable[[PromptBatch], Read]) -> None:
        self._read = read
        self._thread: ThreadPoolExecutor | None = None
        self._next: tuple[PromptBatch, Future[Read]] | None = None

    def __call__(self, batch: PromptBatch) -> Read:
        """The batch, read now unless it has been; errors of a row come here, in the step that the row belongs to."""
        ahead, self._next = self._next, None
        if ahead is None:
            return self._read(batch)
        announced, future = ahead
        if not _is_same(batch, announced):
            future.exception()  # waits for it
            return self._read(batch)
        return future.result()

    def launch(self, batch: PromptBatch | None) -> None:
        """Begins to read the batch of the next step; None where nobody knows it."""
        if batch is None:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="reading ahead")
        self._next = (batch, self._thread.submit(self._read, batch))

    def close(self) -> None:
        """Ends the thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._thread = self._next = None


def _is_same(batch: PromptBatch, announced: PromptBatch) -> bool:
    """Whether this is what was announced, or a copy of it, as Lightning makes one in bf16-true.

    Row numbers would not tell: training and held-out data have the same ones.
    """
    if batch is announced:
        return True
    try:
        return batch == announced
    except (ValueError, RuntimeError):  # arrays or tensors in a column, which are not compared: reading again is safe
        return False
