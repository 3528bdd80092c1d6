"""Curriculum by pass rate: prompts that teach nothing at the moment wait in pools, and are tried again now and then."""

from __future__ import annotations

from dataclasses import dataclass

POOLS = ("open", "easy", "hard")
OPEN, EASY, HARD = range(3)


@dataclass(frozen=True)
class Curriculum:
    """How many prompts of a step come from the pools of easy and of hard ones.

    A prompt starts in the open pool. When all of its completions earn the same, nothing can be learnt from it for now: it
    goes to the easy pool if they are correct, else to the hard one, and comes back with the first group that differs.

    Args:
        easy_share: Of a step's prompts, those tried again although all completions were correct.
        hard_share: Those tried again although no completion was correct.
        easy_from: Share of correct completions from which a prompt is easy although they differ; 1 for none.
        hard_up_to: Share up to which it is hard; 0 for none.
    """

    easy_share: float = 0.1
    hard_share: float = 0.2
    easy_from: float = 1.0
    hard_up_to: float = 0.0

    def __post_init__(self) -> None:
        shares = self.easy_share, self.hard_share
        if min(shares) < 0 or sum(shares) >= 1:
            raise ValueError(
                f"data.curriculum: easy_share={self.easy_share} and hard_share={self.hard_share} must be 0 or more and "
                "leave something of a step to the other prompts."
            )
        if not 0 <= self.hard_up_to < self.easy_from <= 1:
            raise ValueError(
                f"data.curriculum: hard_up_to={self.hard_up_to} and easy_from={self.easy_from} must be shares of correct "
                "completions, the first below the second."
            )

    def pool(self, pass_rate: float, is_dead: bool) -> int:
        """Where a prompt belongs.

        Args:
            pass_rate: Share of correct completions.
            is_dead: Whether all completions earned the same.

        Example:
            >>> curriculum = Curriculum(easy_from=0.75)
            >>> [POOLS[curriculum.pool(rate, rate in (0, 1))] for rate in (0, 0.125, 0.5, 0.75, 1)]
            ['hard', 'open', 'open', 'easy', 'easy']
        """
        if is_dead:
            return EASY if pass_rate >= 0.5 else HARD
        if self.easy_from < 1 and pass_rate >= self.easy_from:
            return EASY
        return HARD if self.hard_up_to > 0 and pass_rate <= self.hard_up_to else OPEN
