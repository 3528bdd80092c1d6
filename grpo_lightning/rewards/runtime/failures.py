"""Decides when a reward that fails is a reason to stop the run."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from grpo_lightning.errors import ExplainedError

WINDOW = 64
"""Completions, at least, over which the share of failures is taken: one bad batch of two is no verdict."""
BATCHES = 8
"""Batches, at least, where one bad completion fails all of its batch."""


class RewardFailedError(ExplainedError, RuntimeError):
    """A reward fails on too many completions to train on; the text holds the first traceback."""


@dataclass
class FailureWatch:
    """The recent failures of one reward.

    Args:
        name: The reward's.
        max_share: Stops when more than this share of the last ``WINDOW`` completions failed, or all of them.
        fails_whole: Whether one completion that cannot be scored fails the whole batch.
    """

    name: str
    max_share: float
    fails_whole: bool = False
    first: str = ""
    """Where, and with which traceback, it failed first."""
    _gave_value: bool = False
    _recent: deque[tuple[int, int]] = field(default_factory=deque)  # (completions, failures) of each batch

    def record(self, completions: int, failures: int, raised: int, first: str) -> bool:
        """Takes in a batch; True where it is the first one with a failure.

        Args:
            completions: In the batch.
            failures: Completions that could not be scored, ``raised`` of them by an exception.
            raised: Completions on which the reward raised.
            first: Report of the batch's first failure.

        Raises:
            RewardFailedError: If the reward has raised on everything so far, or fails too often.
        """
        self._gave_value |= failures < completions
        is_news = bool(failures) and not self.first
        self.first = self.first or first
        self._recent.append((completions, failures))
        batches = BATCHES if self.fails_whole else 1
        while len(self._recent) > batches and sum(seen for seen, _ in self._recent) - self._recent[0][0] >= WINDOW:
            self._recent.popleft()
        seen, failed = (sum(counts) for counts in zip(*self._recent, strict=True))
        # One call says little where one completion fails all of it: a second one must fail as well.
        is_verdict = not self.fails_whole or completions == 1 or len(self._recent) > 1
        never_worked = raised == completions and not self._gave_value and is_verdict
        too_often = (
            seen >= WINDOW and len(self._recent) >= batches and (failed > self.max_share * seen or failed == seen)
        )
        if never_worked or too_often:
            raise RewardFailedError(
                f"Reward '{self.name}' failed on {failed} of the last {seen} completions, so there is nothing to train on "
                f"(max_error_share={self.max_share:g}).{self._way_out()} The first failure was {self.first}"
            )
        return is_news

    def _way_out(self) -> str:
        if not self.fails_whole:
            return ""
        return (
            " One completion that it cannot score fails all of its call: return None for it, or, where each completion is "
            "scored by itself, set scope: completion or model.reward_runtime.repeat_by_row: true."
        )
