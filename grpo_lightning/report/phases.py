"""Where the time of a step goes, in parts that exclude each other and add up to it."""

from __future__ import annotations

import re

from grpo_lightning.report.metrics import Series


def phase_seconds(metrics: dict[str, Series]) -> dict[str, float]:
    """Seconds of a mean step, by phase; ``other`` is what no phase has, and all together are the step.

    A phase is a block of the step, ``time/<phase>``. What rewards log below that, ``time/rewards/<name>`` and its
    maximum, are calls that run at the same time as others and as the phases, so they are none.

    Example:
        >>> metrics = {"step_time": 4.0, "time/generate": 3.0, "time/train": 0.5, "time/rewards/judge": 2.5}
        >>> phase_seconds({name: Series([0], [seconds]) for name, seconds in metrics.items()})
        {'generate': 3.0, 'train': 0.5, 'other': 0.5}
    """
    step_time = metrics.get("step_time")
    if step_time is None:
        return {}
    count, step = len(step_time.values), sum(step_time.values) / len(step_time.values)
    found = {match[1]: sum(metrics[name].values) / count for name in metrics if (match := PHASE.fullmatch(name))}
    together = sum(found.values())
    if together > step:  # each is that of its slowest rank, and they need not be the same
        return {name: seconds * step / together for name, seconds in found.items()}
    return found | {"other": step - together}


PHASE = re.compile(r"time/([^/]+)")
