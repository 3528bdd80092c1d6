"""UpdateModule: how the training of a GRPO step is divided into optimizer steps, and these into passes."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from grpo_lightning.algorithm.averaging import StepTotals
from grpo_lightning.algorithm.experience import Experience, MicroBatch
from grpo_lightning.algorithm.minibatches import minibatch_of_prompts
from grpo_lightning.memory.budget import MemoryPlan
from grpo_lightning.memory.gauge import MemoryGauge, gauge_of
from grpo_lightning.memory.rehearsal import rehearse
from grpo_lightning.modules.objective import ObjectiveModule
from grpo_lightning.types import Rollouts


class UpdateModule(ObjectiveModule):
    """Optimizer steps over minibatches of whole groups, passes over micro-batches that fit into memory.

    Args:
        num_iterations: Passes over the rollouts of a step (mu in the paper); from the second on they are off-policy.
        num_minibatches: Optimizer steps per pass; whole groups are dealt out to them at random.
        **objective: Arguments of ObjectiveModule.
    """

    def __init__(self, num_iterations: int = 1, num_minibatches: int = 1, **objective: Any) -> None:
        super().__init__(**objective)
        for name, value in (("num_iterations", num_iterations), ("num_minibatches", num_minibatches)):
            if value < 1:
                raise ValueError(f"model.{name}={value} trains on nothing. Use 1 or more.")
        self.num_iterations = num_iterations
        self.num_minibatches = num_minibatches
        self.num_updates = num_iterations * num_minibatches
        """Optimizer steps of a GRPO step."""
        self.memory_plan: MemoryPlan | None = None
        """What the start of training measured; None where memory cannot be measured."""

    def setup(self, stage: str) -> None:
        """Checks the batch size against the minibatches before weights load."""
        super().setup(stage)
        prompts = getattr(self.datamodule, "batch_size", self.num_minibatches)
        if stage == "fit" and prompts < self.num_minibatches:
            raise ValueError(
                f"data.batch_size={prompts} prompts cannot be dealt out to model.num_minibatches="
                f"{self.num_minibatches}: a group stays in one minibatch. Use fewer minibatches or more prompts."
            )

    def settle_memory(self) -> None:
        """Makes sure, once and before the first step, that training passes fit into the GPU; auto chooses their size.

        Raises:
            MemoryError: If they do not fit, with what to change.
        """
        gauge = self.memory_gauge()
        if gauge is None or self.memory_plan is not None:
            return
        self.start_times.mark("setup")
        self.rank_watch.enter("the measurement of memory before the first step")
        budget = self.max_tokens_per_microbatch if self.has_token_budget else self.saved_token_budget
        self.memory_plan = rehearse(self, gauge, budget, self.has_token_budget)
        self.max_tokens_per_microbatch = self.memory_plan.budget
        self.start_times.mark("rehearsal")
        if budget not in (None, self.max_tokens_per_microbatch):
            rank_zero_warn(
                f"The checkpoint's micro-batches of {budget} tokens do not fit into memory here: this run has "
                f"{self.max_tokens_per_microbatch}, and its numbers will differ from those of the first one in rounding."
            )

    def memory_gauge(self) -> MemoryGauge | None:
        """What measures the device that the policy is trained on; None where memory cannot be measured."""
        return gauge_of(self.device)

    def prompts_in_a_step(self) -> int:
        """Groups that one step of this rank may train on; more than any has where the data does not tell."""
        return int(getattr(self.datamodule, "batch_size", 2**20))

    def on_train_start(self) -> None:
        """Settles memory, and lets DDP settle its buckets.

        Their layout rounds the sums over ranks, and a resumed run must not differ.
        """
        self.settle_memory()
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            self.manual_backward(self.scorer.idle(self.device))
            self.zero_grad(set_to_none=True)

    def updates(self, experience: Experience) -> Iterator[list[MicroBatch]]:
        """The micro-batches of each optimizer step: num_iterations passes over num_minibatches."""
        for iteration in range(self.num_iterations):
            for rows in self.minibatches(experience.rollouts, iteration):
                yield self.micro_batches(experience, rows)

    def minibatches(self, rollouts: Rollouts, iteration: int) -> list[Tensor]:
        """Completion indices of each optimizer step of a pass; whole groups, dealt out at random."""
        if self.num_minibatches == 1:
            return [torch.arange(rollouts.num_completions)]
        first, seed = self.replica.index * rollouts.num_prompts, (self.seed, "minibatches", self.steps_done, iteration)
        dealt = minibatch_of_prompts(first, rollouts.num_prompts, self.num_minibatches, *seed)
        return [(dealt[rollouts.group] == i).nonzero()[:, 0] for i in range(self.num_minibatches)]

    def micro_batches(self, experience: Experience, rows: Tensor) -> list[MicroBatch]:
        """The forward and backward passes of one optimizer step; at least one on every rank, unless none has any.

        Sharded weights are gathered for each pass, so then every rank has equally many. Completions that can have no
        gradient are left out, but counted in the totals that averages divide by.
        """
        tokens = self._tokens_per_completion(experience, experience.mask)
        uncertain = (
            tokens
            if experience.is_uncertain is None
            else self._tokens_per_completion(experience, experience.is_uncertain)
        )
        trained = rows[(tokens[rows] > 0) & self.has_gradient(experience)[rows]]
        plan = self.scorer.plan(experience.rollouts, trained, self.max_tokens_per_microbatch)
        mine = (len(rows), int(tokens[rows].sum()), len(plan), int(uncertain[rows].sum()))
        replicas = self.replica.of_all(mine)
        totals = StepTotals(*(sum(replica[i] for replica in replicas) for i in (0, 1, 3)))
        passes = max(replica[2] for replica in replicas)
        plan += [rows[:0]] * ((passes if self.is_sharded else min(passes, 1)) - len(plan))
        return [MicroBatch(rows, totals, is_last=i == len(plan) - 1) for i, rows in enumerate(plan)]

    def _tokens_per_completion(self, experience: Experience, flags: Tensor) -> Tensor:
        """(N,) int64, CPU: tokens of each completion with a True flag."""
        counts = torch.zeros(experience.rollouts.num_completions, dtype=torch.int64)
        return counts.index_add_(0, experience.rollouts.token_rows(), flags.cpu().long())

    def has_gradient(self, experience: Experience) -> Tensor:
        """(N,) bool: False for a completion with advantage 0, where nothing but its advantage could train it."""
        if self.objective.trains_all_completions:
            return torch.ones(experience.rollouts.num_completions, dtype=torch.bool)
        return experience.has_advantage
