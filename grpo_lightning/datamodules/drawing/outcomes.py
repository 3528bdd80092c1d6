"""What a step tells the data about its prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_lightning.algorithm.advantages import is_unanimous, successes
from grpo_lightning.datamodules.curriculum import POOLS
from grpo_lightning.datamodules.drawing.orders import DrawnOrder, Order
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.prompts.mixture import MixedPrompts
from grpo_lightning.distributed.gather import gather_objects


@dataclass(frozen=True)
class GroupOutcomes:
    """How prompts did in a step, each with a group of completions."""

    uids: list[int]
    rewards: Tensor
    """(B,) float64: mean total reward; NaN where no completion has one."""
    pass_rates: Tensor
    """(B,) float64: share of correct completions; NaN likewise."""
    is_dead: Tensor
    """(B,) bool: True where all completions earned the same."""

    @classmethod
    def of(cls, uids: Sequence[int], group: Tensor, totals: Tensor, correct: Tensor) -> GroupOutcomes:
        """The outcomes of B prompts from their N completions.

        Args:
            uids: B.
            group: ``(N,)`` int64 in [0, B).
            totals: ``(N,)`` total rewards, NaN for none.
            correct: ``(N,)`` the reward that says what is correct, which is 1 or more; NaN for none.

        Example:
            >>> nan = float("nan")
            >>> totals = torch.tensor([1.5, 0.5, 1.0, 1.0, nan])
            >>> GroupOutcomes.of([7, 8, 9], torch.tensor([0, 0, 1, 1, 2]), totals, totals.clone())
            GroupOutcomes(uids=[7, 8, 9], rewards=tensor([1., 1., nan], dtype=torch.float64),
                          pass_rates=tensor([0.5000, 1.0000,    nan], dtype=torch.float64),
                          is_dead=tensor([False,  True,  True]))
        """
        rows = [(group == b).nonzero()[:, 0] for b in range(len(uids))]
        passed = successes(correct)
        alike = is_unanimous(totals, group) if len(totals) else totals.bool()
        return cls(
            list(uids),
            torch.stack([totals[mine].double().nanmean() for mine in rows] or [torch.zeros(0)]).reshape(-1).double(),
            torch.stack([passed[mine].nanmean() for mine in rows] or [torch.zeros(0)]).reshape(-1).double(),
            torch.tensor([bool(alike[mine].all()) for mine in rows], dtype=torch.bool),
        )

    @classmethod
    def joined(cls, parts: Sequence[GroupOutcomes]) -> GroupOutcomes:
        """All prompts of the parts, in order."""
        empty = torch.zeros(0, dtype=torch.float64)
        return cls(
            [uid for part in parts for uid in part.uids],
            torch.cat([empty, *(part.rewards for part in parts)]),
            torch.cat([empty, *(part.pass_rates for part in parts)]),
            torch.cat([empty.bool(), *(part.is_dead for part in parts)]),
        )


class OutcomeBook:
    """Says how each dataset does, and moves prompts between the pools of a curriculum.

    Args:
        prompts: The run's, to find a prompt by its uid.
        order: Whose pools are moved, where it has some.
        module: The LightningModule, or None.

    Raises:
        ValueError: If there is a curriculum and the module has no rewards to feed it.
    """

    def __init__(self, prompts: PromptDataset | MixedPrompts, order: Order, module: Any = None) -> None:
        self.prompts = prompts
        self.order = order if isinstance(order, DrawnOrder) and order.has_pools else None
        if self.order is not None and module is not None and not hasattr(module, "source"):
            raise ValueError(
                f"data.curriculum follows rewards, and {type(module).__name__} has none: it would have no effect. Leave it out."
            )
        self._places = {uid: place for place, uid in enumerate(prompts.uids)} if self.order else {}

    def record(self, outcomes: GroupOutcomes) -> dict[str, Tensor]:
        """Moves prompts by what all ranks saw, the same on each; what comes back is of this rank.

        Args:
            outcomes: Of this rank's groups of the step.
        """
        metrics = self._by_dataset(outcomes) if isinstance(self.prompts, MixedPrompts) else {}
        if self.order is None:
            return metrics
        for part in gather_objects(outcomes):
            for uid, rate, is_dead in zip(part.uids, part.pass_rates.tolist(), part.is_dead.tolist(), strict=True):
                if not math.isnan(rate):  # without a reward, nothing is known
                    self.order.move(self._places[uid], rate, is_dead)
        shares = self.order.pool_shares()
        return metrics | {f"curriculum/{pool}": shares[k : k + 1] for k, pool in enumerate(POOLS)}

    def _by_dataset(self, outcomes: GroupOutcomes) -> dict[str, Tensor]:
        assert isinstance(self.prompts, MixedPrompts)
        owners = torch.tensor([self.prompts.dataset_of(uid) for uid in outcomes.uids], dtype=torch.int64)
        metrics = {}
        for k, name in enumerate(self.prompts.parts):
            mine = owners == k
            metrics[f"data/{name}/share"] = mine.double()
            metrics[f"data/{name}/reward"] = outcomes.rewards[mine]
            metrics[f"data/{name}/pass_rate"] = outcomes.pass_rates[mine]
        return metrics
