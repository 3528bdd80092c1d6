"""Which prompts a step gets: the epochs of one dataset, or draws from several datasets and from pools."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from grpo_lightning.datamodules.curriculum import Curriculum
from grpo_lightning.datamodules.drawing.places import OtherDataError, epoch_permutation
from grpo_lightning.datamodules.drawing.pools import Pools
from grpo_lightning.datamodules.drawing.quotas import Quotas
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.prompts.mixture import MixedPrompts
from grpo_lightning.seeds import derive_seed

PLANS_KEPT = 4
"""Steps whose draws are remembered: the one in training, the next one under async rollouts, and those of a failed step."""


class Order(Protocol):
    """Says which prompts the step at a place gets, the same on every rank."""

    def places(self, epoch: int, batch: int) -> list[int]:
        """Places of the step's prompts on all ranks, in rank order."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the place."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""


class EpochOrder:
    """A permutation of the prompts for each epoch, cut into steps: a function of (seed, epoch, batch) alone.

    Args:
        num_prompts: Of the dataset.
        per_step: Prompts of a step on all ranks.
        seed: Of the permutations.
        shuffle: False keeps the dataset's order in every epoch.
    """

    def __init__(self, num_prompts: int, per_step: int, seed: int, shuffle: bool) -> None:
        self.num_prompts, self.per_step, self.seed, self.shuffle = num_prompts, per_step, seed, shuffle
        self._permutation: tuple[int, Tensor] | None = None  # of an epoch

    def places(self, epoch: int, batch: int) -> list[int]:
        """As ``Order``."""
        if self._permutation is None or self._permutation[0] != epoch:
            self._permutation = epoch, epoch_permutation(self.num_prompts, self.seed, epoch, self.shuffle)
        start = batch * self.per_step
        return self._permutation[1][start : start + self.per_step].tolist()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the place says it all."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do.

        Raises:
            OtherDataError: If the checkpoint's run drew its prompts.
        """
        if state:
            raise OtherDataError(
                f"The checkpoint's data is of {', '.join(map(str, state['sizes']))} prompts, and this run's is one dataset "
                "without a curriculum. Use the data settings of the first run."
            )


class Epochs:
    """Prompts of one dataset of several: a new permutation whenever a step needs more than the last has left.

    Args:
        num_prompts: Of the dataset.
        seed: Of the permutations.
        shuffle: False keeps the dataset's order.
    """

    def __init__(self, num_prompts: int, seed: int, shuffle: bool) -> None:
        self.num_prompts, self.seed, self.shuffle = num_prompts, seed, shuffle
        self.epoch = self.drawn = 0
        self._permutation: tuple[int, Tensor] | None = None

    def draw(self, count: int) -> list[int]:
        """The next so many prompts, all different."""
        if self.drawn + count > self.num_prompts:
            self.epoch, self.drawn = self.epoch + 1, 0
        if self._permutation is None or self._permutation[0] != self.epoch:
            self._permutation = self.epoch, epoch_permutation(self.num_prompts, self.seed, self.epoch, self.shuffle)
        self.drawn += count
        return self._permutation[1][self.drawn - count : self.drawn].tolist()

    def state_dict(self) -> dict[str, Any]:
        """Two numbers."""
        return {"epoch": self.epoch, "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self.epoch, self.drawn = state["epoch"], state["drawn"]


class DrawnOrder:
    """Draws one step after the other from several datasets, in exact shares, and from each of them in turn.

    What a step gets depends on the draws before it, and with a curriculum on how prompts did, so the checkpoint holds the
    state of every dataset, and the draws of steps that have not been trained on.

    Args:
        sizes: Prompts of each dataset; they lie one after the other.
        weights: Of the datasets.
        per_step: Prompts of a step on all ranks.
        seed: Of all orders.
        shuffle: False keeps the order of each dataset.
        curriculum: Pools for each dataset; None draws them all alike.

    Raises:
        ValueError: If a step needs more prompts of a dataset than it has.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        per_step: int,
        seed: int,
        shuffle: bool = True,
        curriculum: Curriculum | None = None,
    ) -> None:
        self._check_sizes(sizes, weights, per_step)
        self.sizes, self.weights, self.per_step = list(sizes), list(weights), per_step
        self.seed, self.shuffle = seed, shuffle
        self.quotas = Quotas(weights)
        self.sources: list[Epochs | Pools] = [
            Epochs(size, derive_seed(seed, "dataset", k), shuffle)
            if curriculum is None
            else Pools(size, curriculum, derive_seed(seed, "dataset", k), shuffle)
            for k, size in enumerate(sizes)
        ]
        self.has_pools = curriculum is not None
        self.steps_drawn = 0
        self._plans: dict[tuple[int, int], list[int]] = {}

    @staticmethod
    def _check_sizes(sizes: Sequence[int], weights: Sequence[float], per_step: int) -> None:
        exact = [share * per_step for share in Quotas(weights).shares]
        spare = 0 if all(share.denominator == 1 for share in exact) else 2  # a step may also catch up
        for size, share in zip(sizes, exact, strict=True):
            if math.floor(share) + spare > size:
                raise ValueError(
                    f"A step of {per_step} prompts takes up to {math.floor(share) + spare} of a dataset that has {size}. Lower "
                    "its weight in data.datasets, or data.batch_size."
                )

    def places(self, epoch: int, batch: int) -> list[int]:
        """As ``Order``; a place that was asked for before gives what it gave then."""
        plan = self._plans.get((epoch, batch))
        if plan is None:
            plan = self._plans[epoch, batch] = self._draw()
            for old in sorted(self._plans)[:-PLANS_KEPT]:
                del self._plans[old]
        return plan

    def _draw(self) -> list[int]:
        drawn: list[int] = []
        start = 0
        for size, source, count in zip(self.sizes, self.sources, self.quotas.next(self.per_step), strict=True):
            if count:
                drawn += [start + place for place in source.draw(count)]
            start += size
        self.steps_drawn += 1
        # Ranks take contiguous parts: mixed, each gets some of every dataset.
        mixed = epoch_permutation(len(drawn), derive_seed(self.seed, "mix"), self.steps_drawn, self.shuffle)
        return [drawn[i] for i in mixed.tolist()]

    def state_dict(self) -> dict[str, Any]:
        """Draws and pools; as much as a few bytes for each prompt with a curriculum."""
        return {
            "sizes": self.sizes,
            "weights": self.weights,
            "given": self.quotas.given,
            "steps_drawn": self.steps_drawn,
            "plans": [[*key, list(places)] for key, places in self._plans.items()],
            "sources": [source.state_dict() for source in self.sources],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with saved draws and pools. Other weights count from here on, and steps of another size are drawn anew.

        Raises:
            OtherDataError: If the checkpoint's datasets are others, or it was written with or without a curriculum.
        """
        if not state or state["sizes"] != self.sizes:
            found = f"of {', '.join(map(str, state['sizes']))} prompts" if state else "one dataset without a curriculum"
            raise OtherDataError(
                f"The checkpoint's data is {found}, and this run's of {', '.join(map(str, self.sizes))} prompts: draws and pools "
                "of the one do not fit the other. Use the data settings of the first run."
            )
        if [one.keys() for one in state["sources"]] != [source.state_dict().keys() for source in self.sources]:
            raise OtherDataError(
                "data.curriculum was set in the checkpoint's run or is now, not both. Use the first run's."
            )
        if state["weights"] == self.weights:
            self.quotas.given = list(state["given"])
        self.steps_drawn = state["steps_drawn"]
        plans = [plan for plan in state["plans"] if len(plan[2]) == self.per_step]
        self._plans = {(epoch, batch): places for epoch, batch, places in plans}
        for source, saved in zip(self.sources, state["sources"], strict=True):
            source.load_state_dict(saved)

    def move(self, place: int, pass_rate: float, is_dead: bool) -> None:
        """Tells the curriculum how a prompt did."""
        for size, source in zip(self.sizes, self.sources, strict=True):
            if place < size:
                assert isinstance(source, Pools)
                source.move(place, source.settings.pool(pass_rate, is_dead))
                return
            place -= size

    def pool_shares(self) -> Tensor:
        """(3,) float64: the share of all prompts in each pool of the curriculum."""
        sizes = torch.tensor(self.sizes, dtype=torch.float64)
        shares = torch.stack([source.shares() for source in self.sources if isinstance(source, Pools)])
        return (shares * sizes[:, None]).sum(0) / sizes.sum()


def make_order(
    prompts: PromptDataset | MixedPrompts,
    weights: Sequence[float] | None,
    per_step: int,
    seed: int,
    shuffle: bool,
    curriculum: Curriculum | None,
) -> Order:
    """The order that the settings ask for.

    Args:
        prompts: Of the run.
        weights: Of the datasets of a mixture.
        per_step, seed, shuffle, curriculum: As for ``DrawnOrder``.
    """
    if isinstance(prompts, MixedPrompts):
        sizes = list(map(len, prompts.parts.values()))
        return DrawnOrder(sizes, weights or [1] * len(sizes), per_step, seed, shuffle, curriculum)
    if curriculum is not None:
        return DrawnOrder([len(prompts)], [1], per_step, seed, shuffle, curriculum)
    return EpochOrder(len(prompts), per_step, seed, shuffle)
