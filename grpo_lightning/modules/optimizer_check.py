"""Whether optimizer and schedule can be made, before there are weights to make them of."""

from __future__ import annotations

import torch

from grpo_lightning.modules.schedules import RunSchedule
from grpo_lightning.training.optimization import OptimizationSettings, check_scheduler

MANY_STEPS = 10**9
"""In place of a length that is not known yet: longer than any warm-up."""


def check_optimization(settings: OptimizationSettings) -> None:
    """Makes optimizer and schedule of a single small weight, so that what they refuse is known before weights load.

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
        scheduler = settings.lr_scheduler(optimizer)
        if isinstance(scheduler, RunSchedule):
            scheduler.set_total_steps(MANY_STEPS)
    except (ValueError, TypeError) as error:
        raise ValueError(f"model.lr_scheduler cannot be made with these init_args: {error}. Change them.") from error
    check_scheduler(scheduler)
