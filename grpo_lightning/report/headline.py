"""What happened in a run, in one sentence; and the words for its numbers that all parts of the page share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal

from grpo_lightning.report.metrics import EDGE, OF_EVERY_STEP, Series
from grpo_lightning.report.run import Run


def percent(share: float) -> str:
    """A share as the page's script writes it too (format.js).

    Example:
        >>> percent(0.9449), percent(0.0312), percent(0.125)
        ('94%', '3.1%', '13%')
    """
    if abs(share) > 1e9:  # no share of anything, and more digits than a sentence wants
        return f"{100 * share:.3g}%"
    rounded = Decimal(100 * share).quantize(Decimal("0.1" if share < 0.1 else "1"), ROUND_HALF_UP)
    return f"{rounded}".removesuffix(".0") + "%"


DIVERGENCE = "distillation/divergence"
"""Of the policy from its teacher."""


def learns_from_teacher_alone(metrics: Mapping[str, Series], settings: Mapping[str, str]) -> bool:
    """Whether rewards are only watched, with weights of 0, so that totals of 0 say nothing of the run.

    Args:
        metrics: Of the run.
        settings: Of its config, flat. Where they name no weights, those of the rewards themselves count.

    Example:
        >>> taught = {"distillation/divergence": Series([0], [0.5])}
        >>> learns_from_teacher_alone(taught, {"model.reward_weights": "[0.0, 0.0]"}), learns_from_teacher_alone(taught, {})
        (True, False)
    """
    weights = re.findall(r"[^\s,\[\]\"]+", settings.get("model.reward_weights", ""))
    return DIVERGENCE in metrics and bool(weights) and all(re.fullmatch(r"[+-]?0*\.?0*", each) for each in weights)


def num_steps(run: Run) -> int:
    """Steps of the run, over all launches."""
    noted = run.summary.get("steps")
    written = [run.metrics[name].steps[-1] for name in OF_EVERY_STEP if name in run.metrics]
    return noted if isinstance(noted, int) else max(written, default=0)


def held_out_accuracy(run: Run) -> tuple[float, float] | None:
    """Before and after: of summary.json where there is one, else the first and the last evaluation."""
    if (noted := _before_and_after(run)) is not None:
        return noted
    values = run.metrics["val/accuracy"].values if "val/accuracy" in run.metrics else []
    return (values[0], values[-1]) if values else None


def evaluated_steps(run: Run) -> tuple[int, int] | None:
    """The steps of ``held_out_accuracy`` where it is of evaluations in between, and not of before and after training."""
    first = run.summary.get("step_before")  # BeforeAfterSummary joined the run on a resume
    if _before_and_after(run) is not None and isinstance(first, int) and first > 0:
        return first, num_steps(run)
    steps = run.metrics["val/accuracy"].steps if "val/accuracy" in run.metrics else []
    return (steps[0], steps[-1]) if steps and _before_and_after(run) is None else None


def _before_and_after(run: Run) -> tuple[float, float] | None:
    before, after = run.summary.get("strict_before"), run.summary.get("strict_after")
    return (before, after) if isinstance(before, int | float) and isinstance(after, int | float) else None


def headline(run: Run) -> str:
    """The outcome: held-out accuracy where it was measured more than once, else the mean reward, or what a teacher alone taught; else empty."""
    accuracy, reward, evaluated = held_out_accuracy(run), run.metrics.get("reward"), evaluated_steps(run)
    when = f"in {num_steps(run)} step{'' if num_steps(run) == 1 else 's'}"
    if accuracy is not None and (evaluated is None or evaluated[0] < evaluated[1]):
        name, (first, last) = "held-out accuracy", accuracy
        said = percent(first), percent(last)
        if evaluated is not None:
            when = f"between steps {evaluated[0]} and {evaluated[1]}"
    elif learns_from_teacher_alone(run.metrics, run.settings):
        name, (first, last) = "divergence from the teacher", run.metrics[DIVERGENCE].edge_means(EDGE)
        said = f"{first:.3g}", f"{last:.3g}"
    elif reward is not None:
        name, (first, last) = "mean reward", reward.edge_means(EDGE)
        said = f"{first:.3g}", f"{last:.3g}"
    else:
        return ""
    if said[0] == said[1]:
        return f"{name} stayed at {said[1]} {when}"
    return f"{name} {'rose' if last > first else 'fell'} from {said[0]} to {said[1]} {when}"
