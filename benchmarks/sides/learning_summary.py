"""Curves of both sides -> what they have in common, where they differ, and a table."""

from __future__ import annotations

from statistics import mean, median, stdev
from typing import Any

Record = dict[str, Any]
Place = dict[str, Any]

LEVELS = [level / 100 for level in range(0, 101, 5)]
SIDES = ("ours", "trl", "partial")
WARM_UP = 2
"""First steps, which compile and capture, that seconds per step leave out; the curves have them."""


def seconds_to(record: Record, level: float) -> float | None:
    """Training seconds until the held-out accuracy is ``level``, in a straight line between evaluations; None for never.

    Example:
        >>> seconds_to({"evaluations": [{"seconds": 0, "accuracy": 0.2}, {"seconds": 8, "accuracy": 0.6}]}, 0.3)
        2.0
    """
    before: Place | None = None
    for place in record["evaluations"]:
        if place["accuracy"] >= level:
            if before is None:
                return float(place["seconds"])
            share = (level - before["accuracy"]) / (place["accuracy"] - before["accuracy"])
            return float(before["seconds"] + share * (place["seconds"] - before["seconds"]))
        before = place
    return None


def common_level(records: list[Record]) -> float:
    """The highest multiple of 0.05 that every run has reached."""
    reached = min(max(place["accuracy"] for place in record["evaluations"]) for record in records)
    return max(level for level in LEVELS if level <= reached)


def by_completions(records: list[Record], kind: str, name: str) -> dict[int, list[float]]:
    """Values of all seeds at each number of completions that every seed has come to."""
    found: dict[int, list[float]] = {}
    for record in records:
        for place in record[kind]:
            found.setdefault(place["completions"], []).append(place[name])
    return {count: values for count, values in sorted(found.items()) if len(values) == len(records)}


def of_side(records: list[Record], level: float) -> dict[str, Any]:
    """Figures of one side over its seeds."""
    final = [record["evaluations"][-1]["accuracy"] for record in records]
    seconds = [seconds_to(record, level) for record in records]
    reached = [value for value in seconds if value is not None]
    steps = [step["step_seconds"] for record in records for step in record["steps"][WARM_UP:]]
    return {
        "seeds": [record["seed"] for record in records],
        "finished": [record["finished"] for record in records],
        "final_accuracy": final,
        "final_accuracy_mean": round(mean(final), 4),
        "final_accuracy_deviation": round(stdev(final), 4) if len(final) > 1 else None,
        "last_rewards": [round(mean(step["reward"] for step in record["steps"][-5:]), 4) for record in records],
        "step_seconds": round(median(steps), 4) if steps else None,
        "seconds_to_level": [None if value is None else round(value, 2) for value in seconds],
        "mean_seconds_to_level": round(mean(reached), 2) if len(reached) == len(seconds) else None,
    }


def compared(ours: list[Record], others: list[Record]) -> dict[str, Any]:
    """Where our mean accuracy lies among others' seeds, at each number of completions that all runs were evaluated at.

    ``within_spread`` counts the evaluations at which it is neither below their worst seed nor above their best one;
    ``not_below_spread`` those at which it is not below.
    """
    mine, theirs = (by_completions(records, "evaluations", "accuracy") for records in (ours, others))
    shared = [count for count in mine if count in theirs]
    not_below = [count for count in shared if mean(mine[count]) >= min(theirs[count])]
    within = [count for count in not_below if mean(mine[count]) <= max(theirs[count])]
    differences = [mean(mine[count]) - mean(theirs[count]) for count in shared]
    return {
        "evaluations": len(shared),
        "within_spread": len(within),
        "not_below_spread": len(not_below),
        "mean_difference": round(mean(differences), 4) if differences else None,
        "last_difference": round(differences[-1], 4) if differences else None,
    }


def summarize(records: list[Record], level: float | None = None) -> dict[str, Any]:
    """Of runs that were evaluated after a step at least; ``level`` is the accuracy that seconds are counted to."""
    usable = [record for record in records if len(record["evaluations"]) > 1]
    if not usable:
        return {}
    level = common_level(usable) if level is None else level
    sides = {side: [record for record in usable if record["side"] == side] for side in SIDES}
    found: dict[str, Any] = {"level": level}
    found |= {side: of_side(runs, level) for side, runs in sides.items() if runs}
    if sides["ours"] and sides["trl"]:
        found["accuracy"] = compared(sides["ours"], sides["trl"])
        for name in ("step_seconds", "mean_seconds_to_level"):
            if found["ours"][name] and found["trl"][name]:
                found[f"{name}_ratio"] = round(found["trl"][name] / found["ours"][name], 2)
    if sides["ours"] and sides["partial"]:
        found["accuracy_partial"] = compared(sides["partial"], sides["ours"])
    return found


def table(records: list[Record], level: float | None = None) -> str:
    """One line a run, then each side's mean and spread, then the ratios."""
    found = summarize(records, level)
    if not found:
        return "No run has come to an evaluation after its first step yet."
    head = f"{'':14}{'steps':>7}{'start':>8}{'final':>8}{'reward':>8}{'s/step':>9}{'s to ' + format(found['level'], '.2f'):>12}"
    lines = [head]
    for record in records:
        if len(record["evaluations"]) > 1:
            own = of_side([record], found["level"])
            start, final = (record["evaluations"][place]["accuracy"] for place in (0, -1))
            lines.append(
                f"{record['side']:8}seed {record['seed']}{len(record['steps']):7}{start:8.3f}{final:8.3f}"
                f"{own['last_rewards'][0]:8.3f}{_number(own['step_seconds'], 9, 3)}"
                f"{_number(own['seconds_to_level'][0], 12, 1)}"
            )
    for side in SIDES:
        if side in found:
            spread = found[side]["final_accuracy_deviation"]
            of_seeds = "" if spread is None else f" ± {spread:.3f} over seeds"
            lines.append(f"{side}: final accuracy {found[side]['final_accuracy_mean']:.3f}{of_seeds}")
    lines += [
        f"{name}: {value}" for name, value in found.items() if name.endswith("ratio") or name.startswith("accuracy")
    ]
    return "\n".join(lines)


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"
