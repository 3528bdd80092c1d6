"""Learning-rate schedules in optimizer steps."""

from __future__ import annotations

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupSchedule(LambdaLR):
    """Linear warm-up, then constant, linear or cosine decay; stepped once per optimizer step.

    Args:
        optimizer: Its learning rates are the peak.
        warmup_steps: Optimizer steps from 0 to the peak.
        total_steps: Optimizer steps at which the decay ends; needed for ``linear`` and ``cosine``.
        shape: What follows the warm-up.
        min_ratio: Where the decay ends, as a fraction of the peak.

    Raises:
        ValueError: If a decaying shape has no ``total_steps`` beyond the warm-up.

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
        warmup_steps: int = 0,
        total_steps: int | None = None,
        shape: Literal["constant", "linear", "cosine"] = "constant",
        min_ratio: float = 0.0,
    ) -> None:
        if shape != "constant" and (total_steps is None or total_steps <= warmup_steps):
            raise ValueError(
                f"a {shape} schedule needs total_steps above warmup_steps={warmup_steps}, got total_steps={total_steps}. "
                "Set it to the run's number of optimizer steps."
            )

        def factor(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / warmup_steps
            if shape == "constant":
                return 1.0
            assert total_steps is not None
            done = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
            left = 1 - done if shape == "linear" else 0.5 * (1 + math.cos(math.pi * done))
            return min_ratio + (1 - min_ratio) * left

        super().__init__(optimizer, factor)
