"""Where a run goes on from: what ``--ckpt_path last`` and ``best`` mean in a new process."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from grpo_lightning.distributed.checkpoint_check import read_checkpoint


def best_checkpoint(last: Path | None, monitor: str | None) -> Path:
    """The checkpoint that scored best in the run whose newest checkpoint is ``last``.

    Args:
        last: None where there is none.
        monitor: ``checkpoint.monitor``.

    Raises:
        ValueError: Saying why there is none.
    """
    if monitor is None:
        raise ValueError(
            "--ckpt_path best: checkpoint.monitor is not set, so no checkpoint is better than another. Use --ckpt_path last, "
            "or train with checkpoint.monitor=val/accuracy or another metric."
        )
    if last is None:
        raise ValueError("--ckpt_path best: the run has no last.ckpt, which says which checkpoint was the best.")
    states = read_checkpoint(last, weights_only=True).get("callbacks", {})
    scored = [
        state for name, state in states.items() if name.startswith("ModelCheckpoint") and state.get("best_model_path")
    ]
    found = [Path(state["best_model_path"]) for state in scored if state.get("monitor") == monitor]
    if not found:
        raise ValueError(f"--ckpt_path best: no checkpoint of the run was scored by checkpoint.monitor={monitor}.")
    return existing([found[0], last.parent / found[0].name])


def existing(places: Iterable[Path]) -> Path:
    """The first that is there: a run's folder may have been moved.

    Raises:
        ValueError: If none is.
    """
    places = list(places)
    for place in places:
        if place.exists():
            return place
    raise ValueError(f"--ckpt_path best: {places[0]} was the best and is gone. Use --ckpt_path last.")
