"""Optimizer steps, which TRL counts everything in, and GRPO steps, which Lightning's batches are."""

from __future__ import annotations

import math

from grpo_lightning.migration.migration import Migration

TOTAL = "give --total_steps, or max_steps"


def updates(m: Migration) -> int:
    """Optimizer steps of a GRPO step, once the batches are composed."""
    return int(m.config.get("model.num_minibatches", 1)) * int(m.get("num_iterations") or 1)


def total_steps(m: Migration) -> int | None:
    """Optimizer steps of the run; None where only the data tells."""
    if m.total_steps:
        return m.total_steps
    return int(m.get("max_steps")) if (m.get("max_steps") or -1) > 0 else None


def in_steps(m: Migration, value: float) -> int | None:
    """A number of optimizer steps, or below 1 a share of the run, rounded up as in transformers; None if not known."""
    if value >= 1:
        return int(value)
    total = total_steps(m)
    return max(1, math.ceil(total * value)) if total else None


def in_grpo_steps(m: Migration, key: str, steps: int, what: str) -> int:
    """Optimizer steps as GRPO steps, rounded up; where they do not divide, that is said."""
    every = -(-steps // updates(m))
    if every * updates(m) != steps:
        m.say(
            key,
            f"{steps} optimizer steps are no whole number of GRPO steps, each of which takes {updates(m)}: {what} "
            f"every {every * updates(m)} instead.",
        )
    return every
