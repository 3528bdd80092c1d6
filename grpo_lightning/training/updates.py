"""Updates: how the training of a GRPO step is divided into optimizer steps, and these into passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_lightning.algorithm.averaging import StepTotals
from grpo_lightning.algorithm.experience import Experience, MicroBatch
from grpo_lightning.algorithm.minibatches import minibatch_of_prompts
from grpo_lightning.training.load_balance import LoadBalance
from grpo_lightning.training.passes import Passes
from grpo_lightning.types import Rollouts


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """How many optimizer steps a GRPO step has.

    Args:
        num_iterations: Passes over the rollouts of a step (mu in the paper); from the second on they are off-policy.
        num_minibatches: Optimizer steps per pass; whole groups are dealt out to them at random.

    Raises:
        ValueError: If nothing would be trained.
    """

    num_iterations: int = 1
    num_minibatches: int = 1

    def __post_init__(self) -> None:
        for name in ("num_iterations", "num_minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} trains on nothing. Use 1 or more.")

    @property
    def num_updates(self) -> int:
        """Optimizer steps of a GRPO step."""
        return self.num_iterations * self.num_minibatches


class Updates:
    """Optimizer steps over minibatches of whole groups, passes over micro-batches that fit into memory.

    Args:
        settings: See there.
        passes: Over the policy.
        seed: Of the run: groups are dealt out by it.
        trains_all: Whether a completion with advantage 0 has a gradient too.
        load_balance: Whose loss needs the loads of the whole optimizer step, if there is one.
    """

    def __init__(
        self,
        settings: UpdateSettings,
        passes: Passes,
        seed: int = 0,
        trains_all: bool = False,
        load_balance: LoadBalance | None = None,
    ) -> None:
        self.settings, self.passes, self.seed = settings, passes, seed
        self.trains_all, self.load_balance = trains_all or load_balance is not None, load_balance

    def of_step(self, experience: Experience, step: int) -> Iterator[list[MicroBatch]]:
        """The micro-batches of each optimizer step: num_iterations passes over num_minibatches.

        Args:
            experience: What is trained on.
            step: GRPO steps done.
        """
        for iteration in range(self.settings.num_iterations):
            for rows in self.minibatches(experience.rollouts, step, iteration):
                yield self.micro_batches(experience, rows)

    def minibatches(self, rollouts: Rollouts, step: int, iteration: int) -> list[Tensor]:
        """Completion indices of each optimizer step of a pass; whole groups, dealt out at random."""
        count = self.settings.num_minibatches
        if count == 1:
            return [torch.arange(rollouts.num_completions)]
        first, seed = self.passes.replica.index * rollouts.num_prompts, (self.seed, "minibatches", step, iteration)
        dealt = minibatch_of_prompts(first, rollouts.num_prompts, count, *seed)
        return [(dealt[rollouts.group] == i).nonzero()[:, 0] for i in range(count)]

    def micro_batches(self, experience: Experience, rows: Tensor) -> list[MicroBatch]:
        """The forward and backward passes of one optimizer step; at least one on every rank, unless none has any.

        Sharded weights are gathered for each pass, so then every rank has equally many. Completions that can have no
        gradient are left out, but counted in the totals that averages divide by.
        """
        counted, tokens = experience.is_uncertain, experience.rollouts.summed(experience.mask)
        uncertain = tokens if counted is None else experience.rollouts.summed(counted.cpu())
        trained = rows[(tokens[rows] > 0) & self.has_gradient(experience)[rows]]
        plan = self.passes.plan(experience.rollouts, trained)
        mine = (len(rows), int(tokens[rows].sum()), len(plan), int(uncertain[rows].sum()))
        replicas = self.passes.replica.of_all(mine)
        totals = StepTotals(*(sum(replica[i] for replica in replicas) for i in (0, 1, 3)))
        passes = max(replica[2] for replica in replicas)
        plan += [rows[:0]] * ((passes if self.passes.policy.is_sharded else min(passes, 1)) - len(plan))
        balance = self.load_balance
        loads = None if balance is None else balance.of_step(experience.rollouts, plan)
        return [MicroBatch(rows, totals, i == len(plan) - 1, loads) for i, rows in enumerate(plan)]

    def has_gradient(self, experience: Experience) -> Tensor:
        """(N,) bool: False for a completion with advantage 0, where nothing but its advantage could train it."""
        if self.trains_all:
            return torch.ones(experience.rollouts.num_completions, dtype=torch.bool)
        return experience.has_advantage
