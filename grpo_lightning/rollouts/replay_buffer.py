"""Good groups of earlier steps, to be trained on once more."""

from __future__ import annotations

from dataclasses import dataclass, field

from grpo_lightning.rollouts.scored_groups import ScoredGroups


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
