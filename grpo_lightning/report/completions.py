"""The completions of a run, from Parquet to the columns that the page reads."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from grpo_lightning.report.metrics import Series
from grpo_lightning.vision.thumbnails import is_thumbnail

T = TypeVar("T", bound=Hashable)
REWARD_PREFIX = "rewards/"

TYPES = {
    **dict.fromkeys(("step", "uid", "sample", "length"), pa.int64()),
    **dict.fromkeys(("prompt", "completion", "columns"), pa.string()),
    **dict.fromkeys(("reward", "advantage", "mean_logprob"), pa.float64()),
    "truncated": pa.bool_(),
}
"""What the page reads of a file (all columns: callbacks/completion_rows.py); a file without it is someone else's."""
IMAGES = pa.list_(pa.string())
"""Type of the column ``images``, which files of earlier versions lack."""
MAY_BE_NULL = ("reward", "mean_logprob")
UNREADABLE = (OSError, KeyError, ValueError, pa.ArrowException)
"""What reading a changed file raises; a name that is no UTF-8 is a ValueError."""


def read_completions(run: Path, max_rows: int) -> dict[str, Any] | None:
    """Columns of at most ``max_rows`` completions: whole steps, evenly spaced, the first and the last among them.

    Files that vanish or cannot be read (the run may still be writing and thinning out) are passed over.

    Returns:
        None where the run has none. Otherwise lists of equal length under ``step``, ``uid``, ``sample``, ``prompt``,
        ``completion``, ``reward``, ``advantage``, ``length``, ``truncated``, ``dead``, ``columns`` and, under
        ``rewards``, one list per reward; ``prompt``, ``columns`` and ``images`` are indices into ``prompts``, ``extras`` and
        ``thumbnails``.
        ``total`` counts the completions on disk.
    """
    files: dict[int, list[Path]] = defaultdict(list)
    for path in sorted((run / "completions").glob("step-*.parquet")):
        if (match := re.match(r"step-(\d+)\.", path.name)) is not None:
            files[int(match[1])].append(path)
    counts = {step: sum(_num_rows(path) for path in paths) for step, paths in files.items()}
    steps = evenly_spaced_steps(counts, max_rows)
    tables = [table for step in steps for path in files[step] if (table := _read(path)) is not None]
    if not tables:
        return None
    rows = pa.concat_tables(tables, promote_options="permissive").to_pydict()
    return _columns(rows) | {"total": sum(counts.values())}


def evenly_spaced_steps(counts: dict[int, int], max_rows: int) -> list[int]:
    """Steps, ascending, whose ``counts`` add up to at most ``max_rows``; always the first and the last one.

    Example:
        >>> evenly_spaced_steps({0: 10, 1: 10, 2: 10, 3: 10, 4: 10}, max_rows=30)
        [0, 2, 4]
    """
    steps = sorted(counts)
    every = 1
    while True:
        kept = [step for i, step in enumerate(steps) if i % every == 0 or i == len(steps) - 1]
        if sum(counts[step] for step in kept) <= max_rows or len(kept) <= 2:
            return kept
        every += 1


def _num_rows(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except UNREADABLE:
        return 0


def _read(path: Path) -> pa.Table | None:
    """A file's rows; None where it cannot be read, or has other columns than ours, or gaps in them."""
    try:
        table = pq.ParquetFile(path).read()
        rewards = {name: pa.float64() for name in table.column_names if name.startswith(REWARD_PREFIX)}
        if "images" not in table.column_names:
            table = table.append_column("images", pa.nulls(len(table), IMAGES))
        types = TYPES | {"images": IMAGES} | rewards
        table = table.select(list(types)).cast(pa.schema(types))
        table.validate(full=True)  # text that is no UTF-8
    except UNREADABLE:
        return None
    has_gaps = any(table.column(name).null_count for name in TYPES if name not in MAY_BE_NULL)
    return None if has_gaps else table


def _columns(rows: dict[str, list[Any]]) -> dict[str, Any]:
    prompts, prompt_of = _index(rows["prompt"])
    extras, extra_of = _index(rows["columns"])
    shown, shown_of = _index([tuple(filter(is_thumbnail, images or ())) for images in rows["images"]])
    names = [name for name in rows if name.startswith(REWARD_PREFIX)]
    return {
        "step": [step + 1 for step in rows["step"]],  # counted from 1; files have how many came before
        **{name: rows[name] for name in ("uid", "sample", "completion", "length")},
        "prompts": prompts,
        "prompt": prompt_of,
        "extras": extras,
        "columns": extra_of,
        "thumbnails": shown,
        "images": shown_of,
        "truncated": [int(flag) for flag in rows["truncated"]],
        "dead": dead_groups(rows["step"], rows["uid"], rows["advantage"], rows["reward"]),
        **{name: _rounded(rows[name]) for name in ("reward", "advantage", "mean_logprob")},
        "rewards": {name.removeprefix(REWARD_PREFIX): _rounded(rows[name]) for name in names},
    }


def dead_groups(
    steps: Sequence[int], uids: Sequence[int], advantages: Sequence[float], rewards: Sequence[float | None]
) -> list[int]:
    """1 for completions of a group that taught nothing: several completions, all with equal rewards.

    A group without a single reward is dead as well.
    """
    spread: dict[tuple[int, int], set[float | None]] = defaultdict(set)
    moved: dict[tuple[int, int], bool] = defaultdict(bool)
    for step, uid, advantage, reward in zip(steps, uids, advantages, rewards, strict=True):
        spread[step, uid].add(reward)
        moved[step, uid] |= advantage != 0
    return [int(len(spread[key] - {None}) <= 1 and not moved[key]) for key in zip(steps, uids, strict=True)]


def _index(values: Sequence[T]) -> tuple[list[T], list[int]]:
    """The distinct values, and for each entry the place of its value among them."""
    places: dict[T, int] = {}
    indices = [places.setdefault(value, len(places)) for value in values]
    return list(places), indices


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None or not math.isfinite(value) else round(value, 4) for value in values]


PERCENTILES = (10, 50, 90)


def length_percentiles(completions: dict[str, Any] | None) -> dict[str, Series]:
    """``completions/length_p10``, ``_p50`` and ``_p90``: tokens that this share of a step's completions do not exceed.

    The nearest rank is taken, so that each is the length of a completion.

    Args:
        completions: Columns, of which ``step`` and ``length`` are read; None for a run without.

    Example:
        >>> table = {"step": [0] * 10, "length": [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]}
        >>> {name[-3:]: series.values for name, series in length_percentiles(table).items()}
        {'p10': [10.0], 'p50': [50.0], 'p90': [90.0]}
    """
    if completions is None:
        return {}
    lengths: dict[int, list[int]] = defaultdict(list)
    for step, length in zip(completions["step"], completions["length"], strict=True):
        lengths[step].append(length)
    steps = sorted(lengths)
    ordered = [sorted(lengths[step]) for step in steps]
    return {
        f"completions/length_p{percent}": Series(
            list(steps), [float(values[-(-percent * len(values) // 100) - 1]) for values in ordered]
        )
        for percent in PERCENTILES
    }
