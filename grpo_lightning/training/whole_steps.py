"""Steps whose data is written and not sampled: every example is trained on once, in equally many passes everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from grpo_lightning.algorithm.averaging import StepTotals
from grpo_lightning.algorithm.experience import MicroBatch
from grpo_lightning.numerics.load_balance import ExpertLoads
from grpo_lightning.rollouts.replicas import Replica


def micro_batches_everywhere(
    plan: Sequence[Tensor],
    examples: int,
    tokens: int,
    replica: Replica,
    count_loads: Callable[[list[Tensor]], ExpertLoads | None] | None = None,
) -> list[MicroBatch]:
    """The forward and backward passes of an optimizer step, equally many on every rank.

    Args:
        plan: Completions of each of this replica's passes.
        examples: What this replica's loss is a mean over: completions, or pairs.
        tokens: Completion tokens of this replica.
        replica: This one.
        count_loads: What routers do in all passes, on every rank; None where no loss needs it.
    """
    replicas = replica.of_all((examples, tokens, len(plan)))
    totals = StepTotals(sum(each[0] for each in replicas), sum(each[1] for each in replicas))
    count = max(each[2] for each in replicas)
    parts = [*plan, *[plan[0][:0]] * (count - len(plan))]
    loads = None if count_loads is None else count_loads(parts)
    return [MicroBatch(part, totals, i == count - 1, loads) for i, part in enumerate(parts)]
