"""Values that Lightning refuses with a traceback, or would take without effect; in the words of the config."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from grpo_lightning.commands.settings.yaml_file import COMMAND_LINE, Entry

STRATEGIES = ("auto", "ddp", "fsdp2")
"""Names that people write; Lightning has more, and a program may register its own."""
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


@dataclass(frozen=True)
class Range:
    """What a value has to be.

    Args:
        holds: Whether it is.
        why: Why it cannot work otherwise.
        instead: What to set.
    """

    holds: Callable[[Any], bool]
    why: str
    instead: str


def at_least(least: int) -> Callable[[Any], bool]:
    """Whether a number is no smaller; what is no number passes."""
    return lambda value: not isinstance(value, int | float) or isinstance(value, bool) or value >= least


def _is_devices(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return value >= 1 or value == -1
    if isinstance(value, list):
        return len(value) > 0
    return not isinstance(value, str) or bool(
        re.fullmatch(r"auto|-1|[1-9]\d*|\d+\s*,|\d+(\s*,\s*\d+)+\s*,?", value.strip())
    )


def _may_be_a_strategy(value: Any) -> bool:
    """False for a slip of a name; what is far from all of them is told once Lightning's own list is imported."""
    is_name = isinstance(value, str) and value.isidentifier() and value not in ("fsdp", *STRATEGIES)
    return not is_name or value.startswith("ddp_") or not get_close_matches(value, STRATEGIES, 1, cutoff=0.75)


def _is_duration(value: Any) -> bool:
    return not isinstance(value, str) or bool(re.fullmatch(r"\d+:\d+:\d+:\d+", value.strip()))


def _is_seed(value: Any) -> bool:
    return not isinstance(value, int) or isinstance(value, bool) or 0 <= value < 2**32


RANGES = {
    "model.rewards": Range(
        lambda value: not isinstance(value, str) or not value.endswith(".py"),
        "is a file, and a reward is a function in one",
        "Write my_rewards.my_function for my_function in my_rewards.py",
    ),
    "seed_everything": Range(_is_seed, "is no seed", "Choose a whole number from 0 to 4294967295"),
    "trainer.max_steps": Range(at_least(-1), "is no number of steps", "Choose 1 or more, or -1 for no limit"),
    "trainer.val_check_interval": Range(
        lambda value: isinstance(value, bool) or value != 0,
        "is no interval",
        "Choose a number of steps from 1, a share of an epoch such as 0.5, or leave data.eval_dataset out",
    ),
    "trainer.max_epochs": Range(at_least(-1), "is no number of epochs", "Choose 1 or more, or -1 for no limit"),
    "trainer.devices": Range(_is_devices, "leaves nothing to train on", "Choose 1 or more, -1 for all, or auto"),
    "trainer.limit_train_batches": Range(
        lambda value: isinstance(value, bool) or value != 0,
        "trains nothing",
        "Choose a number of steps from 1, or a share of an epoch such as 0.5",
    ),
    "trainer.num_nodes": Range(at_least(1), "is no number of machines", "Choose 1 or more"),
    "trainer.accelerator": Range(
        lambda value: not isinstance(value, str) or value in ACCELERATORS,
        "is nothing that a run can train on",
        f"Choose one of {', '.join(ACCELERATORS)}",
    ),
    "trainer.strategy": Range(
        _may_be_a_strategy, "is no strategy", "Choose one of auto, ddp and fsdp2, or a class path"
    ),
    "trainer.log_every_n_steps": Range(
        at_least(1),
        "writes no metrics, and report has none to draw",
        "Choose 1 or more; each step is one line of a file",
    ),
    "trainer.barebones": Range(
        lambda value: value is not True,
        "leaves out checkpoints, logs and the progress bar, to measure Lightning's own milliseconds, and a step takes seconds",
        "Leave it out; metrics.csv has the time of each phase of a step, and trainer.fast_dev_run=3 is a trial beside the run",
    ),
    "trainer.enable_checkpointing": Range(
        lambda value: value is not False,
        "goes against the checkpoints that every run writes",
        "Leave it out; checkpoint.save_top_k=0 with checkpoint.save_last=false writes none",
    ),
    "trainer.max_time": Range(_is_duration, "is no time", "Write days:hours:minutes:seconds, as in 00:08:00:00"),
    "checkpoint.every_n_train_steps": Range(at_least(0), "is no number of steps", "Choose 1 or more, or 0 for never"),
    "checkpoint.save_top_k": Range(at_least(-1), "is no number of checkpoints", "Choose 0 or more, or -1 for all"),
    "checkpoint.mode": Range(lambda value: value in ("min", "max"), "is no direction", "Choose min or max"),
}


def out_of_range(entries: Sequence[Entry]) -> list[str]:
    """Values that cannot work, alone or together; of several for a setting the last one counts.

    Args:
        entries: With names and types that have been checked.
    """
    last = {entry.name: entry for entry in entries}
    found = [
        f"{name}={last[name].value} {rule.why} ({last[name].where}). {rule.instead}."
        for name, rule in RANGES.items()
        if name in last and last[name].value is not None and not rule.holds(last[name].value)
    ]
    return found or list(filter(None, [_best_of_what(last), _validated_on_what(last)]))


def _best_of_what(last: Mapping[str, Entry]) -> str | None:
    kept = last.get("checkpoint.save_top_k")
    monitor = last.get("checkpoint.monitor")
    if kept is None or kept.value in (-1, 0, 1) or (monitor is not None and monitor.value is not None):
        return None
    return (
        f"checkpoint.save_top_k={kept.value} keeps the best ({kept.where}), and checkpoint.monitor does not say by which "
        "metric. Set it, for example to val/accuracy with checkpoint.mode=max."
    )


def _validated_on_what(last: Mapping[str, Entry]) -> str | None:
    interval, data = last.get("trainer.val_check_interval"), last.get("data.eval_dataset")
    if interval is None or interval.value is None or (data is not None and data.value is not None):
        return None
    if data is not None and data.where == COMMAND_LINE != interval.where:  # a config's evaluation, turned off for once
        return None
    if isinstance(getattr(last.get("data"), "value", None), str):  # settings in a file of their own
        return None
    return (
        f"trainer.val_check_interval={interval.value} has no effect without held-out prompts ({interval.where}). Set "
        "data.eval_dataset, or leave it out."
    )
