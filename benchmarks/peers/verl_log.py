"""Lines of verl's console logger -> steps in the form of our records. Standard library only."""

from __future__ import annotations

import re
from typing import Any

STEP = re.compile(r"\bstep:(\d+) - (.+)")
NUMBER = re.compile(r"(?:np\.\w+\()?(-?[\d.]+(?:e[-+]?\d+)?|nan|-?inf)\)?$")
PHASES = {
    "generate": "timing_s/gen",
    "old_and_reference": "timing_s/old_log_prob",
    "training": "timing_s/update_actor",
    "weight_sync": "timing_s/update_weights",
}
"""Ours -> verl's. A pass that verl leaves out takes it no time."""


def metrics_of(line: str) -> dict[str, float] | None:
    """Numbers of a step by name, or None for any other line.

    Example:
        >>> metrics_of("(TaskRunnerV1 pid=7) step:2 - timing_s/gen:4.5 - response_length/mean:np.float64(210.25)")
        {'timing_s/gen': 4.5, 'response_length/mean': 210.25}
    """
    found = STEP.search(line)
    if found is None:
        return None
    pairs = (part.rsplit(":", 1) for part in found[2].strip().split(" - ") if ":" in part)
    numbers = {name: NUMBER.match(value) for name, value in pairs}
    return {name: float(number[1]) for name, number in numbers.items() if number}


def step_of(metrics: dict[str, float], completions: int, device_bytes: int) -> dict[str, Any]:
    """A step of a record: see ``sides.clock``. Without processor seconds, as verl is many processes.

    Args:
        metrics: Of ``metrics_of``.
        completions: Of the step.
        device_bytes: The most that was in use on the device so far, by trainer and engine.
    """
    wall = {ours: metrics.get(theirs, 0.0) for ours, theirs in PHASES.items()}
    wall["other"] = max(0.0, metrics["timing_s/step"] - sum(wall.values()))
    prompt, completion = (round(metrics[f"{kind}_length/mean"] * completions) for kind in ("prompt", "response"))
    counts = {
        "completions": completions,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "trained_tokens": prompt + completion,
        "longest_completion": round(metrics["response_length/max"]),
    }
    notes = {"trainer_peak_gib": metrics.get("actor/perf/max_memory_allocated_gb", 0.0)}
    return {"wall_s": wall, "peak_bytes": {"training": device_bytes}, "counts": counts, "notes": notes}
