"""Learning-rate schedules in optimizer steps. Those that end take their length from the run where no config says it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from grpo_lightning.errors import ExplainedError

SHAPES = ("constant", "linear", "cosine")
"""What may follow a warm-up."""
Curve = Callable[[int], float]
"""Optimizer steps done -> the factor of the peak rate."""


class ScheduleLengthError(ExplainedError, ValueError):
    """A schedule does not fit the length of its run, which may be known only once its data is read."""


class RunSchedule(LambdaLR):
    """A curve over the run, whose length may be told after construction; stepped once per optimizer step.

    Args:
        optimizer: Its learning rates are the peak.
        curve_of: The curve for a number of optimizer steps; for None where it does not depend on that.
        total_steps: Optimizer steps of the run; None for those that ``set_total_steps`` is told.
        needs_total: Whether the curve depends on them.
    """

    OWN = ("_curve_of", "_curve", "_name")
    """What the config says and a checkpoint does not: a resumed run follows its own config."""

    def __init__(
        self, optimizer: Optimizer, curve_of: Callable[[int | None], Curve], total_steps: int | None, needs_total: bool
    ) -> None:
        self._curve_of = curve_of
        self._curve = curve_of(total_steps) if total_steps is not None or not needs_total else None
        super().__init__(optimizer, lambda step: self._factor(step))

    def _factor(self, step: int) -> float:
        if self._curve is None and step > 0:
            raise ScheduleLengthError(
                "the length of this schedule is not known. Set its total_steps, or use it with a Trainer that has max_steps "
                "or max_epochs."
            )
        return 1.0 if self._curve is None else self._curve(step)

    def set_total_steps(self, total_steps: int | None) -> None:
        """Gives the run's length to a schedule that waits for it; others keep their own.

        Raises:
            ScheduleLengthError: If it waits and nobody knows.
        """
        if self._curve is not None:
            return
        if total_steps is None:
            raise ScheduleLengthError(
                "model.lr_scheduler depends on the length of the run, which only the clock ends. Set its total_steps, or "
                "trainer.max_steps or trainer.max_epochs."
            )
        self._curve = self._curve_of(total_steps)
        self._last_lr = [base * self._curve(self.last_epoch) for base in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """The place on the curve, without the curve."""
        return {key: value for key, value in super().state_dict().items() if key not in self.OWN}


class WarmupSchedule(RunSchedule):
    """Linear warm-up, then constant, linear or cosine decay; stepped once per optimizer step.

    Args:
        optimizer: Its learning rates are the peak.
        warmup_steps: Optimizer steps from 0 to the peak; below 1 a share of total_steps, rounded up.
        total_steps: Optimizer steps at which the decay ends; those of the run where not set.
        shape: What follows the warm-up.
        min_ratio: Where the decay ends, as a fraction of the peak.

    Raises:
        ValueError: For a shape that there is not, numbers that cannot be, or an end of the decay without one.
        ScheduleLengthError: If the warm-up leaves no step for a decaying shape.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = WarmupSchedule(optimizer, warmup_steps=2, total_steps=4, shape="linear")
        >>> rates = []
        >>> for _ in range(4):
        ...     rates.append(schedule.get_last_lr()[0]); optimizer.step(); schedule.step()
        >>> rates
        [0.5, 1.0, 1.0, 0.5]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: float = 0,
        total_steps: int | None = None,
        shape: Literal["constant", "linear", "cosine"] = "constant",
        min_ratio: float = 0.0,
    ) -> None:
        check_warmup(warmup_steps)
        if shape not in SHAPES:
            raise ValueError(f"model.lr_scheduler: shape={shape!r} is unknown. Choose one of {', '.join(SHAPES)}.")
        if not 0 <= min_ratio <= 1:
            raise ValueError(f"model.lr_scheduler: min_ratio={min_ratio} is no share of the peak. Choose 0 to 1.")
        if shape == "constant" and min_ratio:
            raise ValueError(
                f"model.lr_scheduler: min_ratio={min_ratio} has no effect with shape=constant, which does not decay. Set shape=linear "
                "or cosine, or leave it out."
            )

        def curve_of(total: int | None) -> Curve:
            warmup = steps_of(warmup_steps, total)
            if shape != "constant" and (total is None or total <= warmup):
                raise ScheduleLengthError(
                    f"a {shape} schedule needs total_steps above warmup_steps={warmup}, got total_steps={total}. "
                    "Set it to the run's number of optimizer steps, or leave it out."
                )
            return lambda step: _warmed_up(step, warmup, total or 0, shape, min_ratio)

        needs_total = shape != "constant" or 0 < warmup_steps < 1
        super().__init__(optimizer, curve_of, total_steps, needs_total)


def _warmed_up(step: int, warmup: int, total: int, shape: str, min_ratio: float) -> float:
    if step < warmup:
        return (step + 1) / warmup
    if shape == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / (total - warmup))
    left = 1 - done if shape == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return min_ratio + (1 - min_ratio) * left


class TransformersSchedule(RunSchedule):
    """A schedule of transformers by its name there (lr_scheduler_type), with the rates that its Trainer and TRL have.

    Its warm-up starts at a rate of 0, so that the first optimizer step changes nothing; WarmupSchedule's does not.

    Args:
        optimizer: Its learning rates are the peak.
        name: linear, cosine, cosine_with_min_lr, constant_with_warmup, polynomial, ...
        warmup_steps: Optimizer steps from 0 to the peak; below 1 a share of total_steps, rounded up.
        total_steps: Optimizer steps at which the decay ends; those of the run where not set.
        arguments: Of the schedule (lr_scheduler_kwargs), such as min_lr_rate.

    Raises:
        ValueError: If transformers has no such schedule, or it is no function of the step alone.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = TransformersSchedule(optimizer, "linear", warmup_steps=0.25, total_steps=4)
        >>> rates = []
        >>> for _ in range(4):
        ...     rates.append(round(schedule.get_last_lr()[0], 2)); optimizer.step(); schedule.step()
        >>> rates
        [0.0, 1.0, 0.67, 0.33]
    """

    WITHOUT_ARGUMENTS = ("constant", "constant_with_warmup")
    OPEN_ENDED = (*WITHOUT_ARGUMENTS, "inverse_sqrt")

    def __init__(
        self,
        optimizer: Optimizer,
        name: str = "linear",
        warmup_steps: float = 0,
        total_steps: int | None = None,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        check_warmup(warmup_steps)
        if name == "constant" and warmup_steps:
            raise ValueError(
                f"model.lr_scheduler: warmup_steps={warmup_steps} has no effect with name=constant, which starts at the peak. Use "
                "constant_with_warmup, or leave it out."
            )
        if name in self.WITHOUT_ARGUMENTS and arguments:
            raise ValueError(
                f"model.lr_scheduler: arguments={arguments} has no effect with name={name}, which takes none. Leave it out."
            )
        peak = max(group["lr"] for group in optimizer.param_groups)

        def curve_of(total: int | None) -> Curve:
            # Of a small optimizer with the same rate: min_lr is a rate, of which transformers makes a factor.
            stand_in = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
            warmup = steps_of(warmup_steps, total)
            schedule: Any = get_scheduler(name, stand_in, warmup, total, arguments)
            if not isinstance(schedule, LambdaLR):
                raise ValueError(
                    f"the schedule {name} of transformers follows a metric, which GRPO here does not give it."
                )
            curve: Curve = schedule.lr_lambdas[0]
            return curve

        needs_total = name not in self.OPEN_ENDED or 0 < warmup_steps < 1
        super().__init__(optimizer, curve_of, total_steps, needs_total)


def check_warmup(steps: float) -> None:
    """Refuses what is neither a number of steps nor a share.

    Raises:
        ValueError: With a way out.
    """
    if not 0 <= steps < math.inf or (steps > 1 and steps != int(steps)):
        raise ValueError(
            f"model.lr_scheduler: warmup_steps={steps} is neither a whole number of steps nor a share below 1 of them. Use 100, or 0.1."
        )


def steps_of(steps: float, total: int | None) -> int:
    """A number of steps; below 1 a share of ``total``, rounded up as in transformers."""
    return math.ceil(steps * total) if 0 < steps < 1 and total is not None else int(steps)


def run_steps(trainer: L.Trainer, updates: int) -> int | None:
    """Optimizer steps of the whole run: trainer.max_steps, or all epochs of the data; None where neither ends it.

    ``trainer.estimated_stepping_batches`` would say so too, but builds the dataloaders before a resumed run has restored
    their state, which is lost then. A loader of one's own from the datamodule has none to lose.

    Args:
        trainer: With its datamodule set up.
        updates: Optimizer steps of a GRPO step.
    """
    by_steps = trainer.max_steps if trainer.max_steps > 0 else None
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        return by_steps
    batches = _batches_of_an_epoch(trainer)
    by_epochs = None if batches is None else batches * trainer.max_epochs * updates
    return min((steps for steps in (by_steps, by_epochs) if steps is not None), default=None)


def _batches_of_an_epoch(trainer: L.Trainer) -> int | None:
    datamodule: Any = getattr(trainer, "datamodule", None)
    loader: Any = datamodule.train_dataloader() if datamodule is not None else trainer.train_dataloader
    try:
        batches = len(loader)
    except TypeError:  # a stream, or no loader yet
        return None
    limit = trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)
