"""Whether optimizer and schedule can be made, before there are weights to make them of."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer

from grpo_lightning.modules.schedules import RunSchedule, ScheduleLengthError
from grpo_lightning.training.optimization import OptimizationSettings, ScheduleError, make_scheduler

MANY_STEPS = 10**9
"""In place of a length that is not known yet: longer than any warm-up."""


def check_optimization(settings: OptimizationSettings, trainer: Trainer | None = None) -> None:
    """Makes optimizer and schedule of a single small weight, so that what they refuse is known before weights load.

    Args:
        settings: Of the config.
        trainer: Of the run whose length the schedule is to have; None where nothing is trained.

    Raises:
        ValueError: In the words of the config.
    """
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    try:
        optimizer = settings.optimizer([weight])
    except (ValueError, TypeError) as error:
        raise ValueError(f"model.optimizer cannot be made with these init_args: {error}. Change them.") from error
    if settings.lr_scheduler is None:
        return
    try:
        scheduler = make_scheduler(settings.lr_scheduler, optimizer, lambda: MANY_STEPS)
        if isinstance(scheduler, RunSchedule):
            scheduler.set_total_steps(MANY_STEPS if trainer is None else most_steps(trainer))
    except (ScheduleLengthError, ScheduleError):
        raise
    except (ValueError, TypeError) as error:
        raise ValueError(f"model.lr_scheduler cannot be made with these init_args: {error}. Change them.") from error


def most_steps(trainer: Trainer) -> int | None:
    """What the run has at most, as far as is known without its data; None where the clock alone ends it."""
    if trainer.max_steps > 0:
        return trainer.max_steps
    return MANY_STEPS if trainer.max_epochs is not None and trainer.max_epochs >= 0 else None
