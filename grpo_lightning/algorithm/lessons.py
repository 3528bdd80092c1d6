"""What the teachers of on-policy distillation read of a step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_lightning.numerics.divergence import Likeliest
from grpo_lightning.types import Rollouts

NOBODY = -1
"""In place of a teacher's number."""


@dataclass(frozen=True)
class Lessons:
    """The step's completions behind other prompts, and who teaches each; on the CPU."""

    rollouts: Rollouts
    """The step's completions, under what the teachers read in place of the prompts, which may be more than the step has."""
    teacher: Tensor
    """(B,) int64: which teacher each of these prompts has; NOBODY where there is none."""
    likeliest: Likeliest | None = None
    """What teachers on servers have said of each of the T tokens, or of it alone; zeros at those of other teachers."""

    def teacher_of(self, rows: Tensor) -> Tensor:
        """``(M,)`` int64: of the completions ``rows``."""
        return self.teacher[self.rollouts.group[rows]]

    def teacher_of_tokens(self, rows: Tensor) -> Tensor:
        """``(T,)`` int64: of their tokens."""
        return torch.repeat_interleave(self.teacher_of(rows), self.rollouts.completion_lengths[rows])
