"""Steps whose data is written and not sampled: every example is trained on once, in equally many passes everywhere."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from grpo_lightning.algorithm.averaging import StepTotals
from grpo_lightning.algorithm.experience import MicroBatch
from grpo_lightning.training.load_balance import LoadBalance
from grpo_lightning.training.passes import Passes
from grpo_lightning.types import Rollouts


def micro_batches_everywhere(
    passes: Passes,
    rollouts: Rollouts,
    plan: Sequence[Tensor],
    examples: int,
    load_balance: LoadBalance | None = None,
) -> list[MicroBatch]:
    """The forward and backward passes of an optimizer step, equally many on every rank.

    Args:
        passes: Over the policy.
        rollouts: Of this replica.
        plan: Completions of each of its passes.
        examples: What its loss is a mean over: completions, or pairs.
        load_balance: Whose loss needs the loads of the whole step, if there is one.
    """
    replicas = passes.replica.of_all((examples, rollouts.completion_ids.numel(), len(plan)))
    totals = StepTotals(sum(each[0] for each in replicas), sum(each[1] for each in replicas))
    count = max(each[2] for each in replicas)
    parts = [*plan, *[plan[0][:0]] * (count - len(plan))]
    loads = None if load_balance is None else load_balance.of_step(rollouts, parts)
    return [MicroBatch(part, totals, i == count - 1, loads) for i, part in enumerate(parts)]
