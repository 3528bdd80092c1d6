"""Alarms: a run that has stopped learning, or gone wrong, says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from grpo_lightning.errors import ExplainedError


@dataclass(frozen=True)
class Alarm:
    """One thing that can go wrong, seen in the metrics of a step."""

    name: str
    happened: Callable[[dict[str, float]], bool]
    message: str


ALARMS = [
    Alarm(
        "zero_gradient",
        lambda metrics: metrics.get("grad_norm", 1.0) == 0.0,
        "the gradient was zero: nothing was learnt. Where frac_reward_zero_std is 1, every group's rewards are "
        "all equal; make the task easier or harder, sample more (model.num_generations) or at a higher "
        "model.temperature.",
    ),
    Alarm(
        "equal_rewards",
        lambda metrics: metrics.get("frac_reward_zero_std", 0.0) == 1.0,
        "all completions of every prompt got equal rewards, so no advantage differs from 0. Check the reward on a few "
        "completions by hand, and whether the task is far too easy or too hard.",
    ),
    Alarm(
        "not_finite",
        lambda metrics: metrics.get("skipped_updates", 0.0) > 0,
        "the loss or gradient was NaN or infinite and the update was skipped. Lower model.optimizer.lr, check "
        "trainer.precision, and check that rewards are bounded.",
    ),
    Alarm(
        "all_truncated",
        lambda metrics: metrics.get("completions/clipped_ratio", 0.0) == 1.0,
        "every completion ran into model.max_completion_length. Raise it, or check the end-of-sequence token and the "
        "chat template.",
    ),
]


UNREWARDED = (
    "no reward applied to any completion: all of them returned None, raised (the first traceback stands above) or ran out of "
    "time, so that nothing was learnt. Check that each reward ends with return, and that the columns that it needs are in the "
    "data (`python -m grpo_lightning rewards` tries one)."
)
CHANGED = "update/changed_since_start"
STALL_STEPS = 20
"""Steps after which the share of changed weights has to have grown."""
STALL_GROWTH, STALL_SHARE = 1.5, 0.5
"""A run is stalled where that share has grown by less than this factor and is below this. Of runs that learn it grows 3.6 to
14 times between steps 1 and 20, and of those that do not it stays."""
STALLED = (
    "only {share:.1%} of the trained weights differ from those that training started from, as many as after the first step "
    "({first:.1%}): rounding takes the updates away. Use trainer.precision=bf16-mixed, or an optimizer that adds up what "
    "rounding takes (optimi.AdamW)."
)


class Alarms(Callback):
    """Warns after a number of bad steps in a row, and stops the run after more.

    Args:
        warn_after: Bad steps in a row before a warning.
        stop_after: Bad steps in a row before the run is stopped with an error; None never stops it.
        stop_after_not_finite: The same for NaN and infinite gradients. Their updates are skipped, and skipped updates
            do not count towards trainer.max_steps: such a run would never end.
    """

    def __init__(
        self, warn_after: int = 10, stop_after: int | None = None, stop_after_not_finite: int | None = 20
    ) -> None:
        if warn_after < 1 or (stop_after is not None and stop_after < warn_after):
            raise ValueError(f"Alarms: warn_after={warn_after} must be at least 1 and at most stop_after={stop_after}.")
        self.warn_after = warn_after
        self.stop_after = stop_after
        self.stop_after_not_finite = stop_after_not_finite
        self.in_a_row: dict[str, int] = {alarm.name: 0 for alarm in ALARMS}
        self.first_changed: float | None = None
        """Share of the weights that the first step changed."""
        self.was_rewarded = False
        """Whether any completion of the run has had a reward."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts this step; warns or stops.

        Raises:
            RuntimeError: Where an alarm has gone on for as long as it may; the same on every rank.
        """
        metrics: dict[str, float] = pl_module.step_metrics  # type: ignore[assignment]  # the same on every rank
        if hasattr(pl_module, "last_step"):  # supervised training has no rewards
            self._watch_rewards(metrics, pl_module.steps_done)  # type: ignore[arg-type]
        self._watch_weights(metrics, pl_module.steps_done)  # type: ignore[arg-type]
        for alarm in ALARMS:
            self.in_a_row[alarm.name] = self.in_a_row[alarm.name] + 1 if alarm.happened(metrics) else 0
            count = self.in_a_row[alarm.name]
            limits = [self.stop_after, self.stop_after_not_finite if alarm.name == "not_finite" else None]
            if any(limit is not None and count >= limit for limit in limits):
                raise RuntimeError(f"Stopped by alarm {alarm.name}: in the last {count} steps {alarm.message}")
            if count == self.warn_after:
                rank_zero_warn(f"Alarm {alarm.name}: in the last {count} steps {alarm.message}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a run in which no reward ever applied, before its untrained policy is exported as a trained one.

        Raises:
            ExplainedError: With what to look at.
        """
        steps: int = pl_module.steps_done  # type: ignore[assignment]
        if steps and not self.was_rewarded and hasattr(pl_module, "last_step"):
            raise ExplainedError(f"In {steps} steps {UNREWARDED}")

    def _watch_rewards(self, metrics: dict[str, float], step: int) -> None:
        """Warns once, where the first step's completions have no reward at all."""
        means = [value for name, value in metrics.items() if name.startswith("rewards/") and name.endswith("/mean")]
        self.was_rewarded = self.was_rewarded or any(map(math.isfinite, means))
        if step == 1 and not self.was_rewarded:
            rank_zero_warn(f"Alarm no_reward: in the first step {UNREWARDED}")

    def _watch_weights(self, metrics: dict[str, float], step: int) -> None:
        """Warns once, where the share of changed weights has not grown since the first step."""
        share = metrics.get(CHANGED)
        if share is None:
            return
        if self.first_changed is None and share > 0:
            self.first_changed = share
        first = self.first_changed or 0.0
        if step == STALL_STEPS and share < STALL_SHARE and share < STALL_GROWTH * first:
            rank_zero_warn(f"Alarm stalled_weights: after {step} steps {STALLED.format(share=share, first=first)}")

    def state_dict(self) -> dict[str, Any]:
        """The counts, so that an alarm is not delayed by a resume."""
        return {
            "in_a_row": self.in_a_row,
            "first_changed": self.first_changed,
            "was_rewarded": self.was_rewarded,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the counts."""
        self.in_a_row.update(state_dict["in_a_row"])
        self.first_changed = state_dict["first_changed"]
        self.was_rewarded = state_dict.get("was_rewarded", True)
