"""Warm-up and decay: transformers' own schedules, whose length `fit` counts where the config does not say it."""

from __future__ import annotations

from typing import Any

from grpo_lightning.migration.compose.steps import total_steps
from grpo_lightning.migration.migration import Migration

SCHEDULE = "grpo_lightning.modules.schedules.TransformersSchedule"
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
)
"""Those of transformers that are a function of the step alone."""
OPEN_ENDED = ("constant", "constant_with_warmup", "inverse_sqrt")
"""Those among them that do not depend on the length of the run."""


def compose_schedule(m: Migration) -> None:
    """The schedule of lr_scheduler_type with its warm-up; nothing for a constant rate."""
    kind = m.get("lr_scheduler_type")
    name = str(getattr(kind, "value", kind)).lower()
    if name not in SCHEDULES:
        m.refuse(
            "lr_scheduler_type",
            f"{name} has no counterpart; the rate stays constant. Name a class path in model.lr_scheduler.",
        )
        for key in ("warmup_steps", "warmup_ratio", "lr_scheduler_kwargs"):
            m.refuse(key, f"lr_scheduler_type: {name} has no counterpart.")
        return
    m.needs_nothing("lr_scheduler_type")
    warmup = _warmup(m, name)
    arguments = _arguments(m, name)
    m.needs_nothing("warmup_steps", "warmup_ratio", "lr_scheduler_kwargs")
    if name == "constant" or (name == "constant_with_warmup" and not warmup):
        return
    target = "model.lr_scheduler.init_args"
    m.put("model.lr_scheduler.class_path", SCHEDULE, "lr_scheduler_type")
    m.put(f"{target}.name", name, "lr_scheduler_type")
    if warmup:
        m.put(f"{target}.warmup_steps", warmup, "warmup_steps" if m.get("warmup_steps") else "warmup_ratio")
    if arguments:
        m.put(f"{target}.arguments", arguments, "lr_scheduler_kwargs")
    total = total_steps(m)
    if total is not None and (name not in OPEN_ENDED or 0 < warmup < 1):
        m.put(f"{target}.total_steps", total, "max_steps")


def _warmup(m: Migration, name: str) -> float:
    """Steps of warm-up, below 1 a share of all steps: warmup_steps, else older TRL's warmup_ratio, which is a share."""
    steps, ratio = float(m.get("warmup_steps") or 0), float(m.get("warmup_ratio") or 0)
    if steps and ratio:
        m.refuse("warmup_ratio", "warmup_steps decides, as in TRL.")
    key, warmup = ("warmup_steps", steps) if steps else ("warmup_ratio", ratio)
    if warmup and name == "constant":
        m.refuse(key, "lr_scheduler_type: constant has no warm-up in TRL either.")
        return 0
    if warmup == 1 and key == "warmup_ratio":  # all of the run: one step would be read as a number of steps
        return float(total_steps(m) or 0)
    return int(warmup) if warmup >= 1 else warmup


def _arguments(m: Migration, name: str) -> dict[str, Any]:
    given = dict(m.get("lr_scheduler_kwargs") or {})
    if given and name in ("constant", "constant_with_warmup"):
        m.refuse("lr_scheduler_kwargs", f"lr_scheduler_type: {name} has none in TRL either.")
        return {}
    return given
