"""Where the steps of TRL's trainers begin and end, and the loss of each."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from sides.clock import PhaseClock


class StepsOfTrainer(TrainerCallback):
    """Tells the clock of them.

    Args:
        clock: Of the side.
    """

    def __init__(self, clock: PhaseClock) -> None:
        self.clock = clock

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self.clock.start()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Ends the step."""
        self.clock.end_step()

    def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Notes the loss, which comes after the end of its step."""
        if "loss" in logs:
            self.clock.steps[-1]["notes"]["loss"] = float(logs["loss"])
