"""What sequences begin with alike: texts and lists of tokens."""

from __future__ import annotations

from collections.abc import Sequence


def same_start(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items both begin with.

    Example:
        >>> same_start("chat", "char"), same_start([1, 2], [1, 2, 3])
        (3, 2)
    """
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)
