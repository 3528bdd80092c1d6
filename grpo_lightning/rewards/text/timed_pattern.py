"""A regular expression with a time limit: what a model writes may never hold it up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import regex  # type: ignore[import-untyped]  # ships no types

Match = Literal["search", "full"]


@dataclass(frozen=True)
class TimedPattern:
    """A compiled pattern; dot matches newlines.

    Args:
        pattern: A regular expression (``regex`` module; flags as in ``(?i)``).
        match: Whether it is ``search``-ed in a text or must match the ``full`` text.
        time_limit: Seconds per text.

    Raises:
        ValueError: If the pattern is no regular expression, or a setting is unknown.

    Example:
        >>> TimedPattern("b+", match="search").found_in("abc"), TimedPattern("b+", match="full").found_in("abc")
        (True, False)
    """

    pattern: str
    match: Match = "search"
    time_limit: float = 1.0
    _compiled: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_matching(self.match, self.time_limit)
        try:
            object.__setattr__(self, "_compiled", regex.compile(self.pattern, regex.DOTALL))
        except regex.error as error:
            raise ValueError(f"pattern={self.pattern!r:.200} is no regular expression: {error}.") from error

    def found_in(self, text: str) -> bool:
        """True where the pattern matches.

        Raises:
            TimeoutError: Where it took too long to tell.
        """
        look = self._compiled.search if self.match == "search" else self._compiled.fullmatch
        # concurrent: the search lets go of the interpreter lock, so that a slow pattern does not stop the trainer.
        try:
            return look(text, timeout=self.time_limit, concurrent=True) is not None
        except TimeoutError:
            raise TimeoutError(
                f"pattern={self.pattern!r:.200} took more than time_limit={self.time_limit:g} s"
            ) from None


def check_matching(match: str, time_limit: float) -> None:
    """Raises ValueError for an unknown ``match`` or a ``time_limit`` that leaves no time."""
    if match not in ("search", "full"):
        raise ValueError(f"match={match!r} is unknown. Choose full or search.")
    if time_limit <= 0:
        raise ValueError(f"time_limit={time_limit} seconds leaves no time. Choose more than 0.")
