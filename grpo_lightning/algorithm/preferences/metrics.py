"""What is logged of preferences, under TRL's names."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lightning.algorithm.metric_sums import MetricSums
from grpo_lightning.algorithm.preferences.base import PreferenceLoss, PreferenceScores, delta


def logged(loss: PreferenceLoss, scores: PreferenceScores, values: Tensor) -> dict[str, Tensor]:
    """All that is logged of some completions, as entries to average.

    Args:
        loss: What was computed.
        scores: From these.
        values: ``loss.per_example(scores)``.
    """
    with torch.no_grad():
        rewards = loss.rewards(scores)
        compared = _of_pairs(scores, rewards) if loss.in_pairs else _by_kind(scores, rewards)
        return {"loss": values.detach(), **{name: each.detach() for name, each in compared.items()}}


def logged_rewards(rewards: Tensor, values: Tensor) -> dict[str, Tensor]:
    """All that is logged of pairs that a reward model has scored, as entries to average.

    Args:
        rewards: ``(2P,)``, chosen and rejected in turn; no gradient.
        values: ``(P,)`` losses; no gradient.
    """
    accuracy = (rewards[0::2] > rewards[1::2]).to(rewards.dtype)
    return {"loss": values, "accuracy": accuracy, "margin": delta(rewards), "mean_reward": rewards}


def mean_entries(entries: dict[str, Tensor]) -> MetricSums:
    """Entries as sums to be divided once all are there."""
    means = {name: torch.stack([each.sum(), each.new_tensor(len(each))]) for name, each in entries.items()}
    return MetricSums(means=means)


def metric_names(loss: PreferenceLoss) -> list[str]:
    """What ``logged`` has entries of."""
    compared = ["rewards/accuracies", "rewards/margins"] if loss.in_pairs else []
    return ["loss", *compared, *(f"{what}/{kind}" for what in ("rewards", "logps") for kind in ("chosen", "rejected"))]


def with_margin(numbers: dict[str, float]) -> dict[str, float]:
    """Of single completions: adds how much more good ones earn than bad ones, where there were both.

    Example:
        >>> with_margin({"rewards/chosen": 0.5, "rewards/rejected": -1.0})["rewards/margins"]
        1.5
    """
    chosen, rejected = numbers.get("rewards/chosen"), numbers.get("rewards/rejected")
    if "rewards/margins" in numbers or chosen is None or rejected is None:
        return numbers
    return {**numbers, "rewards/margins": chosen - rejected}


def _of_pairs(scores: PreferenceScores, rewards: Tensor) -> dict[str, Tensor]:
    """Entries to average by metric, under TRL's names: rewards and logps, and of pairs how they compare.

    Args:
        scores: Of pairs, if neighbours differ in ``is_chosen`` and are compared.
        rewards: ``(M,)``.
    """
    pairs = {
        "rewards/accuracies": (rewards[0::2] > rewards[1::2]).to(rewards.dtype),
        "rewards/margins": delta(rewards),
    }
    return pairs | _by_kind(scores, rewards)


def _by_kind(scores: PreferenceScores, rewards: Tensor) -> dict[str, Tensor]:
    """Entries to average of chosen and of rejected completions."""
    kinds = {"chosen": scores.is_chosen, "rejected": ~scores.is_chosen}
    entries = {f"rewards/{kind}": rewards[which] for kind, which in kinds.items()}
    return entries | {f"logps/{kind}": scores.logps[which] for kind, which in kinds.items()}
