"""A source of rollouts with the sources that it wraps: saved, restored and closed together, the outermost first."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from grpo_lightning.rollouts.base import Source


def links(source: Source) -> list[Source]:
    """The source, what it wraps, and so on."""
    chain = [source]
    while (inner := chain[-1].inner) is not None:
        chain.append(inner)
    return chain


def state_of(source: Source, step: int) -> dict[str, Any]:
    """The state of each after ``step`` GRPO steps, by name; called on every rank."""
    return {each.key: each.state_dict(step) for each in links(source)}


def restore(source: Source, saved: dict[str, Any]) -> None:
    """Restores the state of each that was saved; what no part of this run goes on with is said."""
    for each in links(source):
        if each.key in saved:
            each.load_state_dict(saved[each.key])
    if saved.get("async_rollouts", {}).get("parts") and all(each.key != "async_rollouts" for each in links(source)):
        rank_zero_warn(
            "The checkpoint holds the next step's batch, which model.async_rollouts=0 leaves out: the next step samples "
            "its own."
        )
    lost = sum(map(len, saved.get("partial_rollouts", {}).get("ranks", [])))
    if lost and all(each.key != "partial_rollouts" for each in links(source)):
        rank_zero_warn(
            f"model.partial_rollouts.carry_over=0 leaves {lost} carried groups out that the checkpoint holds: their prompts are "
            "not trained on in this epoch."
        )


def close(source: Source, step: int) -> None:
    """Releases what each holds outside Python: the next batch before the engine that samples it."""
    for each in links(source):
        each.close(step)
