"""How rewards are run: ``model.reward_runtime``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RewardRuntime:
    """How rewards are run.

    Args:
        max_workers: Synchronous calls that run at the same time, over all rewards.
        time_limit: Seconds per call, unless the reward has a call_time_limit. A call that exceeds it is given up (its
            completions count as None).
        step_time_limit: Seconds that a step waits for rewards after its last completion; what is not scored then is
            None.
        max_error_share: The run stops when a reward fails on more than this share, in (0, 1], of the latest
            completions (at least 64 of them), or has never done anything but raise.
        repeat_by_row: Call a reward of scope batch again with one completion at a time where a call with all of them
            failed. Only for rewards that score each completion by itself: one that compares them would give other values.
        reward_column: Dataset column in which a row may name the rewards that apply to it; null for none.
    """

    max_workers: int = 16
    time_limit: float = 120.0
    step_time_limit: float = 600.0
    max_error_share: float = 0.5
    repeat_by_row: bool = False
    reward_column: str | None = "rewards"

    def __post_init__(self) -> None:
        rules = {
            "max_workers": self.max_workers >= 1,
            "time_limit": self.time_limit > 0,
            "step_time_limit": self.step_time_limit > 0,
            "max_error_share": 0 < self.max_error_share <= 1,
        }
        for name, holds in rules.items():
            if not holds:
                rule = "above 0, at most 1" if name == "max_error_share" else "above 0"
                raise ValueError(f"model.reward_runtime.{name}={getattr(self, name)} cannot work. Choose {rule}.")
