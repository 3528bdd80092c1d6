"""What is logged of preferences, under TRL's names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_lightning.algorithm.metric_sums import MetricSums, mean_over
from grpo_lightning.algorithm.preferences.base import PreferenceLoss, PreferenceScores, delta


@dataclass(frozen=True)
class Entries:
    """What is averaged. Which of them count is told by a mask: picked out, their number would have to reach the host."""

    values: Tensor
    """(M,)."""
    counted: Tensor | None = None
    """(M,) bool; None for all."""

    def sums(self) -> Tensor:
        """``(2,)``: their sum, and how many there are; the host does not wait for either."""
        if self.counted is not None:
            return mean_over(self.values, self.counted)
        return torch.stack([self.values.sum(), self.values.new_full((), len(self.values))])

    def tolist(self) -> list[float]:
        """Those that count."""
        return (self.values if self.counted is None else self.values[self.counted]).tolist()


def logged(loss: PreferenceLoss, scores: PreferenceScores, values: Tensor) -> dict[str, Entries]:
    """All that is logged of some completions, as entries to average.

    Args:
        loss: What was computed.
        scores: From these.
        values: ``loss.per_example(scores)``.
    """
    with torch.no_grad():
        rewards = loss.rewards(scores).detach()
        compared = _of_pairs(rewards) if loss.in_pairs else {}
        return {"loss": Entries(values.detach()), **compared, **_by_kind(scores, rewards)}


def logged_rewards(rewards: Tensor, values: Tensor) -> dict[str, Entries]:
    """All that is logged of pairs that a reward model has scored, as entries to average.

    Args:
        rewards: ``(2P,)``, chosen and rejected in turn; no gradient.
        values: ``(P,)`` losses; no gradient.
    """
    accuracy = (rewards[0::2] > rewards[1::2]).to(rewards.dtype)
    entries = {"loss": values, "accuracy": accuracy, "margin": delta(rewards), "mean_reward": rewards}
    return {name: Entries(each) for name, each in entries.items()}


def mean_entries(entries: dict[str, Entries]) -> MetricSums:
    """Entries as sums to be divided once all are there."""
    return MetricSums(means={name: each.sums() for name, each in entries.items()})


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


def _of_pairs(rewards: Tensor) -> dict[str, Entries]:
    """How the two of each pair compare, under TRL's names.

    Args:
        rewards: ``(2P,)``, chosen and rejected in turn.
    """
    accuracies = (rewards[0::2] > rewards[1::2]).to(rewards.dtype)
    return {"rewards/accuracies": Entries(accuracies), "rewards/margins": Entries(delta(rewards))}


def _by_kind(scores: PreferenceScores, rewards: Tensor) -> dict[str, Entries]:
    """Entries to average of chosen and of rejected completions."""
    kinds, logps = {"chosen": scores.is_chosen, "rejected": ~scores.is_chosen}, scores.logps.detach()
    entries = {f"rewards/{kind}": Entries(rewards, which) for kind, which in kinds.items()}
    return entries | {f"logps/{kind}": Entries(logps, which) for kind, which in kinds.items()}
