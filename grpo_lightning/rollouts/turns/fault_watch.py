"""Decides when environments that fail are a reason to stop the run."""

from __future__ import annotations

import logging
from collections import deque

from grpo_lightning.errors import ExplainedError

logger = logging.getLogger(__name__)
WINDOW = 64
"""Rollouts, at least, over which the share is taken."""


class EnvironmentsFailedError(ExplainedError, RuntimeError):
    """Too many rollouts ended by a fault of their environment; the text holds the first one."""


class FaultWatch:
    """The recent faults of environments.

    Args:
        max_share: Stops above this share of the latest ``WINDOW`` rollouts, and where every rollout has failed.
    """

    def __init__(self, max_share: float) -> None:
        self.max_share = max_share
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._one_worked = False
        self._first = ""

    def record(self, faults: list[str]) -> None:
        """Takes in the rollouts of a call, in order: what went wrong in each, an empty text for nothing.

        Raises:
            EnvironmentsFailedError: If too many failed.
        """
        if not faults:
            return
        found = [fault for fault in faults if fault]
        self._one_worked |= len(found) < len(faults)
        self._recent.extend(bool(fault) for fault in faults)
        if found and not self._first:
            self._first = found[0]
            logger.warning(
                "The environment failed in %d of %d rollouts, which count for nothing. This is shown once, and counted in "
                "rollouts/stop/fault. The first fault was: %s",
                *(len(found), len(faults), self._first),
            )
        failed, seen = sum(self._recent), len(self._recent)
        if not self._one_worked or (seen == WINDOW and failed > self.max_share * seen):
            raise EnvironmentsFailedError(
                f"The environment failed in {failed} of the last {seen} rollouts, so there is too little to train on "
                f"(model.turns.max_fault_share={self.max_share:g}). The first fault was: {self._first}"
            )
