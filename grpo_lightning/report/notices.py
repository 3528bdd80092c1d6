"""What stands out in a run, in words: shown at the top of its page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from grpo_lightning.report.headline import DIVERGENCE, learns_from_teacher_alone, percent
from grpo_lightning.report.metrics import EDGE, Series

Metrics = dict[str, Series]


@dataclass(frozen=True)
class Notice:
    """One remark: ``bad`` wants a change, ``warn`` a look, ``info`` is good to know."""

    level: str
    title: str
    text: str


NEAR_ONE, NEAR_ZERO = 0.8, 0.2
"""Mean rewards at which dead groups are taken for solved and for never solved; rewards mostly run from 0 to 1."""


def notices(metrics: Metrics, settings: Mapping[str, str], launches: int = 1) -> list[Notice]:
    """Everything that stands out, worst first.

    Args:
        metrics: Of the run.
        settings: Of its config, flat; empty where they are not known.
        launches: Times that it was started.
    """
    watched = OF_REWARDS if learns_from_teacher_alone(metrics, settings) else ()
    found = [notice for check in CHECKS if check not in watched and (notice := check(metrics)) is not None]
    if launches > 1:
        text = f"Started {launches} times; where a launch repeated steps, its values are shown."
        found.append(Notice("info", "Several launches", text))
    return sorted(found, key=lambda notice: ("bad", "warn", "info").index(notice.level))


def _end(metrics: Metrics, name: str) -> float:
    return metrics[name].edge_means(EDGE)[1] if name in metrics else 0.0


def _errors(metrics: Metrics) -> dict[str, float]:
    """Errors of each reward over the run, where there are any."""
    sums = {
        name.removeprefix("rewards/").removesuffix("/errors"): sum(series.values)
        for name, series in metrics.items()
        if name.startswith("rewards/") and name.endswith("/errors")
    }
    return {name: total for name, total in sums.items() if total}


def _reward_errors(metrics: Metrics) -> Notice | None:
    errors = _errors(metrics)
    if not errors:
        return None
    counts = ", ".join(f"{name} on {count:.0f}" for name, count in errors.items())
    text = f"Failed: {counts} completions, which counted as None. The log holds the first traceback of each reward."
    return Notice("bad", "Reward errors", text)


def _unscored(metrics: Metrics) -> Notice | None:
    share = _end(metrics, "frac_reward_none")
    if share <= 0:
        return None
    text = f"{percent(share)} of the completions at the end of the run got no reward at all and were left out."
    return Notice("bad", "Completions without a reward", text)


def _skipped(metrics: Metrics) -> Notice | None:
    count = sum(metrics["skipped_updates"].values) if "skipped_updates" in metrics else 0
    if not count:
        return None
    text = f"{count:.0f} updates had a gradient that was NaN or infinite. Lower the learning rate; check trainer.precision."
    return Notice("bad", "Skipped updates", text)


def _dead_groups(metrics: Metrics) -> Notice | None:
    share = _end(metrics, "frac_reward_zero_std")
    if share < 0.5:
        return None
    level = "bad" if share > 0.95 else "warn"
    taught = "were taught by the teacher alone" if DIVERGENCE in metrics else "taught nothing"
    said = f"{percent(share)} of the groups at the end of the run had equal rewards and {taught}."
    if "reward" not in metrics:
        return Notice(level, "Dead groups", said)
    reward = _end(metrics, "reward")
    said += f" The mean reward there is {reward:.3g}"
    if reward >= NEAR_ONE:
        text = f"{said}: the prompts are too easy by now. Take harder ones, or stop here."
        return Notice("warn", "Dead groups, too easy", text)
    if reward <= NEAR_ZERO:
        text = (
            f"{said}: the prompts are too hard. Take easier ones, or a reward that gives parts of an answer something."
        )
        return Notice(level, "Dead groups, too hard", text)
    text = f"{said}: prompts are either always or never solved. Take those between, or raise model.temperature."
    return Notice(level, "Dead groups", text)


def _truncated(metrics: Metrics) -> Notice | None:
    share = _end(metrics, "completions/clipped_ratio")
    if share < 0.1:
        return None
    text = f"{percent(share)} of the completions at the end of the run ran into model.max_completion_length."
    return Notice("bad" if share > 0.5 else "warn", "Truncated completions", text)


def _mismatch(metrics: Metrics) -> Notice | None:
    difference = _end(metrics, "sampling/sampling_logp_difference/mean")
    if difference < 0.05:
        return None
    text = (
        f"The sampler's and the trainer's logprobs differ by {difference:.2f} nats per token on average. "
        "Check the sampler's dtype and that weights reach it."
    )
    return Notice("bad" if difference > 0.2 else "warn", "Sampler and trainer disagree", text)


def _stalled(metrics: Metrics) -> Notice | None:
    series = metrics.get("update/changed_since_start")
    if series is None or len(series.values) < 20:
        return None
    first, last = series.values[0], series.values[-1]
    if last >= 0.5 or last >= 1.5 * first:
        return None
    text = (
        f"After the first step {first:.1%} of the trained weights had changed, and at the end {last:.1%}: rounding takes the "
        "updates away. Use trainer.precision=bf16-mixed, or model.optimizer=optimi.AdamW."
    )
    return Notice("bad", "Weights do not move", text)


def _no_progress(metrics: Metrics) -> Notice | None:
    if "reward" not in metrics or len(metrics["reward"].values) < 20:
        return None
    first, last = metrics["reward"].edge_means(EDGE)
    if last > first:
        return None
    text = f"Mean reward was {first:.3f} at the start and is {last:.3f} at the end."
    return Notice("warn", "Reward has not risen", text)


def _entropy_collapse(metrics: Metrics) -> Notice | None:
    if "entropy" not in metrics or len(metrics["entropy"].values) < 20:
        return None
    first, last = metrics["entropy"].edge_means(EDGE)
    if first < 0.05 or last > 0.1 * first:
        return None
    text = f"Entropy fell from {first:.3f} to {last:.3f} nats per token: completions of a group are nearly alike."
    return Notice("warn", "Entropy has collapsed", text)


CHECKS: list[Callable[[Metrics], Notice | None]] = [
    _reward_errors,
    _unscored,
    _skipped,
    _dead_groups,
    _truncated,
    _mismatch,
    _stalled,
    _no_progress,
    _entropy_collapse,
]

OF_REWARDS = (_dead_groups, _no_progress)
"""Checks that mean nothing where rewards are only watched."""
