"""Percentiles of completion lengths, step by step, from the completions of a run."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from grpo_lightning.report.metrics import Series

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
