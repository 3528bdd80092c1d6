"""Dynamic sampling: a step trains on groups that can teach something (DAPO, arXiv:2503.14476, Sec. 3.2).

A group whose completions all earn the same has advantage 0 everywhere. Such groups are dropped, or replaced by further
prompts within a cap, or by good groups of the last steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from grpo_lightning.algorithm.advantages import combine_rewards, is_unanimous
from grpo_lightning.datamodules.drawing.places import epoch_permutation
from grpo_lightning.distributed.gather import gather_objects
from grpo_lightning.distributed.sharding import is_first_rank
from grpo_lightning.rewards import RewardTable
from grpo_lightning.rollouts.scored_groups import ScoredGroups

logger = logging.getLogger(__name__)

MODES = ("off", "drop", "refill")


@dataclass(frozen=True)
class DynamicSampling:
    """What happens to groups whose completions all earn the same.

    Args:
        mode: off (they are sampled, counted in averages, and teach nothing), drop (they are left out of the step) or
            refill (they are replaced by completions of further prompts).
        max_rounds: With refill: how many times a step samples further prompts at most.
        replay_groups: Groups that taught something in earlier steps kept per device, each used once more in place of
            one that is missing; 0 for none. Their tokens are off-policy and weighted by the importance correction.
        replay_max_age: Steps after which a kept group is too old.
    """

    mode: Literal["off", "drop", "refill", False] = "off"
    max_rounds: int = 3
    replay_groups: int = 0
    replay_max_age: int = 4

    def __post_init__(self) -> None:
        if self.mode is False:  # what YAML 1.1 makes of off without quotes
            object.__setattr__(self, "mode", "off")
        if self.mode not in MODES:
            raise ValueError(f"model.dynamic_sampling.mode={self.mode!r} is unknown. Choose one of {', '.join(MODES)}.")
        if self.max_rounds < 1 or self.replay_groups < 0 or self.replay_max_age < 1:
            raise ValueError(
                f"model.dynamic_sampling: max_rounds={self.max_rounds} and replay_max_age={self.replay_max_age} must be "
                f"1 or more, replay_groups={self.replay_groups} 0 or more."
            )
        if self.mode == "off" and self.replay_groups:
            raise ValueError(
                "model.dynamic_sampling.replay_groups has no effect with mode=off: no group is missing. Set mode."
            )


def groups_with_signal(
    rewards_per_func: Tensor, groups: Tensor, weights: Tensor, per_reward: bool = False
) -> list[int]:
    """The groups in which completions differ in what they earn, ascending.

    Args:
        rewards_per_func: ``(N, R)`` rewards, NaN for None.
        groups: ``(N,)``.
        weights: ``(R,)``.
        per_reward: True where each reward is normalised for itself, so that a spread in one of them is enough though
            the totals agree.

    Example:
        >>> rewards_per_func = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
        >>> groups, weights = torch.tensor([0, 0, 1, 1]), torch.ones(2)
        >>> groups_with_signal(rewards_per_func, groups, weights), groups_with_signal(rewards_per_func, groups, weights, per_reward=True)
        ([1], [0, 1])
    """
    columns = (
        rewards_per_func[:, weights != 0].unbind(dim=1) if per_reward else [combine_rewards(rewards_per_func, weights)]
    )
    differs = torch.zeros(len(groups), dtype=torch.bool)
    for column in columns:
        differs |= ~is_unanimous(column, groups)
    return groups[differs].unique().tolist()


@dataclass(frozen=True)
class Round:
    """What a step samples at a time."""

    sampled: ScoredGroups
    kept: ScoredGroups
    """Those of them in which completions differ."""


@dataclass
class ReplayBuffer:
    """Newest last.

    Args:
        size: Groups kept at most.
        max_age: Steps after which one is forgotten.
    """

    size: int
    max_age: int
    groups: list[tuple[int, ScoredGroups]] = field(default_factory=list)
    """(step in which it was sampled, one group)."""

    def add(self, step: int, groups: ScoredGroups) -> None:
        """Keeps these groups; the oldest make room."""
        self.groups += [(step, groups.take([g])) for g in range(len(groups))]
        self.groups = self.groups[len(self.groups) - self.size :] if len(self.groups) > self.size else self.groups

    def pop(self, count: int, step: int) -> list[ScoredGroups]:
        """Up to ``count`` groups, newest first, which are then no longer kept; older ones than ``max_age`` are lost."""
        self.groups = [(then, group) for then, group in self.groups if step - then <= self.max_age]
        return [self.groups.pop()[1] for _ in range(min(count, len(self.groups)))]


class DynamicSampler:
    """Chooses the groups of a step, on one rank; what it remembers between steps goes into the checkpoint.

    Further prompts come from an order of their own, endless and shuffled: the epochs of the data are left as they are.

    Args:
        settings: Mode and caps.
        seed: Of the order of further prompts.
        compose: Values and weights of a table, whose weighted sum is the total.
        per_reward: As for ``groups_with_signal``.
    """

    def __init__(
        self,
        settings: DynamicSampling,
        seed: int,
        compose: Callable[[RewardTable], tuple[Tensor, Tensor]],
        per_reward: bool = False,
    ) -> None:
        self.settings, self.seed, self.compose, self.per_reward = settings, seed, compose, per_reward
        self.drawn = 0
        """Further prompts that this rank has taken so far."""
        self.replay = ReplayBuffer(settings.replay_groups, settings.replay_max_age)

    @property
    def further_rounds(self) -> int:
        """Rounds in which a step may sample further prompts."""
        return self.settings.max_rounds if self.settings.mode == "refill" else 0

    def next_rows(self, count: int, num_rows: int, rank: int = 0, world_size: int = 1) -> list[int]:
        """Dataset rows of this rank's next further prompts; ranks take turns, so none is drawn twice in a pass."""
        places = [(self.drawn + i) * world_size + rank for i in range(count)]
        self.drawn += count
        orders = {p // num_rows: None for p in places}
        permutations = {epoch: epoch_permutation(num_rows, self.seed, -1 - epoch) for epoch in orders}
        return [int(permutations[place // num_rows][place % num_rows]) for place in places]

    def round(self, sampled: ScoredGroups) -> Round:
        """A round in which these were sampled."""
        rewards_per_func, weights = self.compose(sampled.rewards)
        kept = groups_with_signal(rewards_per_func, sampled.rollouts.group, weights, self.per_reward)
        return Round(sampled, sampled.take(kept))

    def choose(self, rounds: Sequence[Round], wanted: int, step: int) -> tuple[ScoredGroups, dict[str, Tensor]]:
        """The groups to train on, and per-group numbers to log; called on every rank.

        Args:
            rounds: Of the step; of its own prompts the first.
            wanted: Groups that the step is to have.
            step: GRPO steps done.

        Returns:
            Groups in which completions differ; where no rank has any, the first one that rank 0 sampled. And entries
            to average: ``dynamic_sampling/kept`` (of the groups sampled), ``rounds``, ``missing`` (of those wanted),
            ``replayed`` (of those trained on), ``reward_sampled`` (mean total reward before any choice).
        """
        sampled, kept = [each.sampled for each in rounds], [each.kept for each in rounds]
        fresh = sum(map(len, kept))
        replayed = self.replay.pop(wanted - fresh, step) if self.settings.replay_groups else []
        if self.settings.replay_groups:
            self.replay.add(step, ScoredGroups.joined(kept))
        parts = [part for part in kept if len(part)] + replayed
        # A rank may be left without groups, so that the step is the same on any number of ranks; all of them may not.
        nobody = not any(gather_objects(bool(parts)))
        groups = ScoredGroups.joined(parts or [sampled[0].take([0] if nobody and is_first_rank() else [])])
        totals = [combine_rewards(*self.compose(one.rewards)) for one in sampled]
        return _with_metrics_of(sampled, groups), {
            "dynamic_sampling/kept": _share(fresh, sum(map(len, sampled))),
            "dynamic_sampling/rounds": torch.tensor([float(len(sampled))], dtype=torch.float64),
            "dynamic_sampling/missing": _share(wanted - fresh - len(replayed), wanted),
            "dynamic_sampling/replayed": _share(len(replayed), len(groups)),
            "dynamic_sampling/reward_sampled": torch.cat(totals),
        }

    def state_dict(self) -> dict[str, Any]:
        """Of all ranks, the same on each: called on every rank."""
        mine = {"drawn": self.drawn, "replay": [(step, group.state_dict()) for step, group in self.replay.groups]}
        return {"ranks": gather_objects(mine)}

    def load_state_dict(
        self, state: dict[str, Any], weights: Mapping[str, float], rank: int = 0, world_size: int = 1
    ) -> None:
        """Continues from a saved state; on another number of ranks the kept groups are dealt out anew.

        Args:
            state: Groups in it that other rewards have scored are not kept.
            weights: Of the run's rewards, by name and in order.
            rank, world_size: Of this process.
        """
        ranks = state["ranks"]
        if len(ranks) == world_size:
            self.drawn, saved = ranks[rank]["drawn"], ranks[rank]["replay"]
        else:
            self.drawn = -(-sum(one["drawn"] for one in ranks) // world_size)
            saved = sorted((entry for one in ranks for entry in one["replay"]), key=lambda entry: entry[0])[
                rank::world_size
            ]
        same = [(step, group) for step, group in saved if group.get("names") == tuple(weights)]
        if len(same) < len(saved):
            told = all("names" in group for _, group in saved)
            why = "were scored by other rewards" if told else "are of an older version, which did not keep all of them"
            logger.warning("The checkpoint's groups for replay %s; they are not used again.", why)
        self.replay.groups = [(step, ScoredGroups.from_state(group, weights)) for step, group in same]


def _with_metrics_of(sampled: Sequence[ScoredGroups], groups: ScoredGroups) -> ScoredGroups:
    """The groups with the metrics of this step's scoring: not of the steps that scored those that are replayed."""
    metrics = RewardTable.joined([one.rewards for one in sampled]).metrics
    return replace(groups, rewards=replace(groups.rewards, metrics=metrics))


def _share(count: int, of: int) -> Tensor:
    """Entries whose mean, over ranks too, is a share: 1 for each of ``count``, which may be below 0, and else 0."""
    return (torch.arange(of) < count).double()
