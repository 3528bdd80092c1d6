"""Whether prompts leave room for their completions, and of which row of the data one is that does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from grpo_lightning.errors import RefusedRowError


class RefusedPromptError(RefusedRowError):
    """A prompt that a generator cannot complete. It knows its place in the call alone: see :func:`naming_rows`."""

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(f"prompt {place} of the batch {reason}")
        self.place, self.reason = place, reason


def check_room(prompt_ids: Sequence[Sequence[int]], lengths: Sequence[int], limit: int | None, because: str) -> None:
    """Refuses prompts without a token, and those behind which a completion would be cut short without a word.

    Args:
        prompt_ids: B prompts.
        lengths: Tokens that may follow each.
        limit: Tokens of a prompt with its completion; None for any number.
        because: What has the limit, and what to do.

    Raises:
        RefusedPromptError: Of the first such prompt.
    """
    for place, (ids, length) in enumerate(zip(prompt_ids, lengths, strict=True)):
        if len(ids) == 0:
            raise RefusedPromptError(place, "has no tokens, so there is nothing to complete.")
        longest = len(ids) + length
        if limit is not None and longest > limit:
            raise RefusedPromptError(
                place, f"has {len(ids)} tokens and may reach {longest} with its completion, but {because}"
            )


@contextmanager
def naming_rows(row_name: Callable[[int], str]) -> Iterator[None]:
    """Around the call of a generator, for who knows the rows.

    Args:
        row_name: What errors call the prompt at a place of the call.

    Raises:
        RefusedRowError: In place of a RefusedPromptError.
    """
    try:
        yield
    except RefusedPromptError as error:
        raise RefusedRowError(f"{row_name(error.place)} {error.reason}") from error
