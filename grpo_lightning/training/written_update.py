"""The optimizer step of a batch that is written and not sampled: every example is trained on once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from grpo_lightning.algorithm.averaging import StepTotals
from grpo_lightning.algorithm.experience import MicroBatch
from grpo_lightning.algorithm.metric_sums import MetricSums
from grpo_lightning.datamodules.drawing.progress import next_batch
from grpo_lightning.datamodules.written.reading_ahead import ReadAhead
from grpo_lightning.metrics.step_report import StepReport
from grpo_lightning.training.load_balance import LoadBalance
from grpo_lightning.training.optimization import Optimization
from grpo_lightning.training.passes import Passes
from grpo_lightning.types import Rollouts

ShareOfLoss = Callable[[MicroBatch], tuple[Tensor, MetricSums]]
"""A micro-batch's share of the loss of all replicas, and what is logged of it."""


class WrittenUpdate:
    """Forward and backward passes, equally many on every rank, and one optimizer step.

    Args:
        optimization: Of the policy.
        passes: Over it.
        read: Reads the batch of the next step while the device is at work on this one's.
        load_balance: Whose loss needs the loads of the whole step, if there is one.
    """

    def __init__(
        self,
        optimization: Optimization,
        passes: Passes,
        read: ReadAhead[Any],
        load_balance: LoadBalance | None = None,
    ) -> None:
        self.optimization, self.passes, self.read, self.load_balance = optimization, passes, read, load_balance

    def micro_batches(self, rollouts: Rollouts, plan: Sequence[Tensor], examples: int) -> list[MicroBatch]:
        """The passes of the step.

        Args:
            rollouts: Of this replica.
            plan: Completions of each of its passes.
            examples: What its loss is a mean over: completions, or pairs.
        """
        replicas = self.passes.replica.of_all((examples, rollouts.completion_ids.numel(), len(plan)))
        totals = StepTotals(sum(each[0] for each in replicas), sum(each[1] for each in replicas))
        count = max(each[2] for each in replicas)
        parts = [*plan, *[plan[0][:0]] * (count - len(plan))]
        loads = None if self.load_balance is None else self.load_balance.of_step(rollouts, parts)
        return [MicroBatch(part, totals, i == count - 1, loads) for i, part in enumerate(parts)]

    def __call__(self, micro_batches: Sequence[MicroBatch], share: ShareOfLoss, report: StepReport) -> None:
        """Improves the policy, and reports it."""
        replica = self.passes.replica
        for micro_batch in micro_batches:
            loss, metrics = share(micro_batch)
            if replica.leads:  # the others have the same numbers
                report.add(metrics)
            if micro_batch.is_last:
                self.read.launch(next_batch(self.optimization.lightning.trainer))
            self.optimization.accumulate_gradient(loss * replica.count, micro_batch)
        report.add_update(self.optimization.step())
        tokens = torch.tensor(micro_batches[0].totals.tokens, dtype=torch.float64)
        report.add(MetricSums(maxima={"tokens/completion": tokens}))  # of all ranks, and on each the same
