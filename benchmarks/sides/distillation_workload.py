"""What all sides of a comparison of on-policy distillation are given. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from sides.workload import WORKLOADS, Workload


@dataclass(frozen=True)
class DistillationWorkload(Workload):
    """A Workload with a teacher. The loss is the reverse KL divergence per token, and nothing else."""

    teacher_shape: str = "tiny"
    """Of the teacher: a key of ``make_model.SHAPES``. It is frozen, in bfloat16 on a GPU."""
    teacher: str = ""
    """Its model directory."""

    def options(self) -> dict[str, Any]:
        """Everything but the places of files."""
        return {name: value for name, value in super().options().items() if name != "teacher"}


def with_teacher(shape: str, teacher_shape: str, **changed: Any) -> DistillationWorkload:
    """The workload of a shape, with the fewest completions of a prompt that this project samples."""
    base = replace(WORKLOADS[shape], num_generations=2, **changed)
    given = {field.name: getattr(base, field.name) for field in fields(base)}
    return DistillationWorkload(**given, teacher_shape=teacher_shape)


DISTILLATION_WORKLOADS = {
    "nano": with_teacher("nano", "nano", prompts_per_step=4),
    "tiny": with_teacher("tiny", "tiny", prompts_per_step=16),
    "0.5b": with_teacher("0.5b", "1.5b", prompts_per_step=256),
    "1.5b": with_teacher("1.5b", "7b", prompts_per_step=256),
}
"""Defaults by shape of the student; every field can be changed on the command line."""
