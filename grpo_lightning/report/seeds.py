"""Runs of one config that differ in their seed alone: the page draws them as mean and spread."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_lightning.report.run import Run

SEEDS = {"seed_everything", "model.seed", "data.seed"}
PLACES = {"trainer.default_root_dir", "trainer.logger", "ckpt_path", "config"}
"""Where a run writes, and what it goes on from: of no weight for what it learns."""


def seed_groups(runs: Sequence[Run]) -> list[list[int]]:
    """Numbers of the runs with equal settings and different seeds, a list for each config that has at least two.

    Example:
        >>> runs = [Run("", {}, 1, 0.0, settings={"seed_everything": s, "model.beta": b}) for s, b in ("00", "10", "01")]
        >>> seed_groups(runs)
        [[0, 1]]
    """
    groups: dict[frozenset[tuple[str, str]], list[int]] = {}
    for number, run in enumerate(runs):
        if run.settings:
            groups.setdefault(frozenset(_learning(run)), []).append(number)
    return [group for group in groups.values() if len({runs[i].settings.get("seed_everything") for i in group}) > 1]


def _learning(run: Run) -> set[tuple[str, str]]:
    return {
        (name, value)
        for name, value in run.settings.items()
        if name not in SEEDS | PLACES and not name.startswith("trainer.logger.") and not name.endswith(".dirpath")
    }
