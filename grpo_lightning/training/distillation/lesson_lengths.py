"""Whether teachers can read what they are told: a prompt of their own, and each completion behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from grpo_lightning.algorithm.lessons import NOBODY, Lessons
from grpo_lightning.errors import RefusedRowError


def too_long(lessons: Lessons, limits: Sequence[int | None]) -> torch.Tensor:
    """``(B,)`` bool: prompts of the lessons that reach, with their longest completion, beyond what their teacher has.

    Args:
        lessons: Of the step.
        limits: Tokens that each teacher can read; None for any number.
    """
    rollouts = lessons.rollouts
    longest = torch.zeros_like(rollouts.prompt_lengths)
    longest = longest.scatter_reduce(0, rollouts.group, rollouts.completion_lengths, "amax")
    most = torch.iinfo(torch.int64).max
    allowed = torch.tensor([most if limit is None else limit for limit in limits])[lessons.teacher.clamp(min=0)]
    return (lessons.teacher != NOBODY) & (rollouts.prompt_lengths + longest > allowed)


def check_lengths(lessons: Lessons, limits: Sequence[int | None], names: Sequence[str], uids: Sequence[int]) -> None:
    """Refuses prompts that are too long for their teacher, of which the data can be rid.

    Args:
        lessons: Of the step, with its own prompts.
        limits: See ``too_long``.
        names: Of the teachers.
        uids: Rows of the data, of the prompts.

    Raises:
        RefusedRowError: Naming the row.
    """
    for b in too_long(lessons, limits).nonzero()[:, 0].tolist():
        number = int(lessons.teacher[b])
        raise RefusedRowError(
            f"row {uids[b]} has {int(lessons.rollouts.prompt_lengths[b])} tokens for its teacher, {names[number]!r}, which with "
            f"a completion of the step reach beyond the {limits[number]} positions that it has. Shorten what "
            "model.distillation.teacher_prompt adds, leave out long rows (data.max_prompt_length), lower "
            "model.max_completion_length, or use a teacher with more."
        )


def without_too_long(lessons: Lessons, limits: Sequence[int | None]) -> Lessons:
    """Nobody teaches what is too long because of what the step has found out, which nobody can foresee.

    Args:
        lessons: Of the step.
        limits: See ``too_long``.
    """
    return replace(lessons, teacher=lessons.teacher.masked_fill(too_long(lessons, limits), NOBODY))
