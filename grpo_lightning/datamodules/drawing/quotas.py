"""How much of a step each part gets: exact shares, in whole prompts."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


class Quotas:
    """Whole numbers a step whose running totals follow the weights, never two away from the exact share.

    Where every share of a step is a whole number, each step has exactly that.

    Args:
        weights: Of the parts; their sum may be any positive number.

    Example:
        >>> quotas = Quotas([1, 2])
        >>> [quotas.next(4) for _ in range(3)]  # 4 prompts a step: 4/3 and 8/3
        [[1, 3], [2, 2], [1, 3]]
    """

    def __init__(self, weights: Sequence[float | Fraction]) -> None:
        exact = [Fraction(str(weight)) for weight in weights]  # 0.1 as it is written, not as it is stored
        self.shares = [weight / sum(exact) for weight in exact]
        self.given = [0] * len(exact)
        """What each part has had so far."""

    def next(self, count: int) -> list[int]:
        """So many, divided among the parts: what each is behind by, the fractions going to the largest."""
        total = sum(self.given) + count
        behind = [share * total - given for share, given in zip(self.shares, self.given, strict=True)]
        quota = [max(0, int(deficit)) if deficit > 0 else 0 for deficit in behind]
        remainders = sorted(range(len(quota)), key=lambda k: (quota[k] - behind[k], k))
        for k in remainders[: max(0, count - sum(quota))]:
            quota[k] += 1
        while sum(quota) > count:  # a part that is ahead leaves the others too much
            k = max((k for k in range(len(quota)) if quota[k]), key=lambda k: (quota[k] - behind[k], k))
            quota[k] -= 1
        self.given = [given + one for given, one in zip(self.given, quota, strict=True)]
        return quota
