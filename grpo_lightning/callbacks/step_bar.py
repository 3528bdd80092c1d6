"""The bar at the bottom of a terminal: one line, in GRPO steps, with the time to the end."""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomBarColumn
from rich.progress import ProgressColumn, TextColumn
from rich.table import Column

BAR_WIDTH = 16
"""Characters. With the longest numbers the line still has 80 or fewer."""
NUMBERS = {"reward": "reward {:.3f}", "loss": "loss {:.3f}", "tokens_per_second": "{:,.0f} tok/s"}
"""What the line says of a step, at most two of them, the first that are there."""


def planned_steps(trainer: Trainer, num_updates: int) -> int | None:
    """Steps of the whole run, each of ``num_updates`` optimizer steps; None where it has no end."""
    steps = None
    knows_epoch = math.isfinite(trainer.num_training_batches)  # a stream does not say how many there are
    if knows_epoch and trainer.max_epochs and trainer.max_epochs > 0:
        steps = int(trainer.num_training_batches) * trainer.max_epochs
    if trainer.max_steps > 0:
        by_limit = -(-trainer.max_steps // num_updates)
        steps = by_limit if steps is None else min(steps, by_limit)
    return steps


def last_step(trainer: Trainer, num_updates: int, done: int) -> int | None:
    """The step that the run ends after, counted from its first; None where it has no end. As training starts.

    A resumed run has what is left by its own settings: prompts per step and optimizer steps may be other ones than before.

    Args:
        trainer: With the progress of the run that is continued, if one is.
        num_updates: Optimizer steps per step.
        done: Steps behind it.
    """
    left = []
    if math.isfinite(trainer.num_training_batches) and trainer.max_epochs and trainer.max_epochs > 0:
        epochs: Any = trainer.fit_loop.epoch_progress.current
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        into_epoch = batches.ready if epochs.processed < epochs.ready else 0
        left.append((trainer.max_epochs - trainer.current_epoch) * int(trainer.num_training_batches) - into_epoch)
    if trainer.max_steps > 0:
        left.append(-(-(trainer.max_steps - trainer.global_step) // num_updates))
    return done + max(0, min(left)) if left else None


def spoken(seconds: float) -> str:
    """A time as people say it.

    Example:
        >>> spoken(8.4), spoken(200), spoken(9000)
        ('8 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class StepBar(RichProgressBar):
    """Counts steps over the whole run, not batches of an epoch; evaluation shows itself in the same line."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=4)
        self._ends: list[float] = []  # of the last steps, by the clock
        self._moved: list[tuple[logging.StreamHandler[Any], Any]] = []

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Name, bar, time to the end, numbers; none of them may wrap."""

        def text(content: str, **column: Any) -> TextColumn:
            return TextColumn(content, markup=False, table_column=Column(no_wrap=True, **column))

        bar = CustomBarColumn(bar_width=BAR_WIDTH, finished_style="green", complete_style="green")
        numbers = text("{task.fields[numbers]}", overflow="ellipsis")
        return [text("{task.description}"), bar, text("{task.fields[left]}"), numbers]

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """None: the columns above have the numbers."""
        return {}

    def _init_progress(self, trainer: Trainer) -> None:
        super()._init_progress(trainer)
        if sys.stderr is getattr(sys.stderr, "rich_proxied_file", sys.stderr):
            return  # no terminal
        loggers = [logging.root, *logging.root.manager.loggerDict.values()]
        for logger in loggers:
            for handler in getattr(logger, "handlers", []):  # a placeholder between two names has none
                # Handlers took hold of the stream before the bar stood between, and would write into its line.
                if isinstance(handler, logging.StreamHandler) and handler.stream is sys.__stderr__:
                    self._moved.append((handler, handler.setStream(sys.stderr)))

    def _stop_progress(self) -> None:
        for handler, stream in self._moved:
            handler.setStream(stream)
        self._moved = []
        super()._stop_progress()

    def _add_task(self, total_batches: float, description: str, visible: bool = True) -> Any:
        assert self.progress is not None
        return self.progress.add_task(description, total=total_batches, visible=visible, left="", numbers="")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the line of the whole run; a resumed run begins where it stopped."""
        super().on_train_start(trainer, pl_module)
        self._ends = [time.monotonic()]
        if self.progress is not None:
            total = last_step(trainer, getattr(pl_module, "num_updates", 1), getattr(pl_module, "steps_done", 0))
            self.train_progress_bar_id = self._add_task(float("inf") if total is None else total, "")
            self._draw(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing begins anew."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One step further."""
        self._ends = [*self._ends, time.monotonic()][-20:]
        self._draw(pl_module)

    def _draw(self, module: Any, note: str = "") -> None:
        """The line as it stands; ``note`` takes the place of the numbers."""
        if self.progress is None or self.train_progress_bar_id is None:
            return
        done, metrics = module.steps_done, getattr(module, "step_metrics", None) or {}
        total = self.train_progress_bar.total
        is_endless = total is None or total == float("inf")
        name = f"step {done}" if is_endless else f"step {done}/{total:.0f}"
        left = ""
        if not is_endless and len(self._ends) > 1:
            ends = self._ends[1:] if len(self._ends) > 2 else self._ends  # the first step warms up
            pace = (ends[-1] - ends[0]) / (len(ends) - 1)
            left = f"{spoken(max(0, total - done) * pace)} left"
        numbers = [form.format(metrics[name]) for name, form in NUMBERS.items() if name in metrics]
        if "reward" in metrics:
            numbers = [number for number in numbers if not number.startswith("loss")]
        self.progress.update(
            self.train_progress_bar_id,
            completed=done,
            description=name,
            left=left,
            numbers=note or "  ".join(numbers),
        )
        self.refresh()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """While training runs, evaluation is a note in its line."""
        if trainer.state.fn != "fit":
            super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        else:
            self._draw(pl_module, f"held out: batch {batch_idx + 1}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The numbers of the step again."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit":
            self._draw(pl_module)
