"""Loaders of prompt batches. Not torch DataLoaders: Lightning would replace their samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch import Trainer

from grpo_lightning.datamodules.drawing.orders import EpochOrder, Order
from grpo_lightning.datamodules.drawing.other_prompts import noted, say_what_changed
from grpo_lightning.datamodules.drawing.places import (
    OtherDataError,
    evaluation_rows,
    num_evaluation_batches,
    training_rows,
)
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.prompts.mixture import MixedPrompts
from grpo_lightning.types import PromptBatch

IN_WORDS = {"prompts": "the number of prompts", "prompts_per_step": "data.batch_size times devices"}
"""Of what decides where an epoch stands."""


class TrainingLoader:
    """Batches of an endless sequence of epochs; the place in it is saved and restored with checkpoints.

    By default the order is a function of (seed, epoch) alone. The incomplete last global batch of an epoch is left out.
    Lightning sets the epoch before each one, and saves and loads the state; outside of Lightning, an epoch that was iterated
    to its end is followed by the next.

    Args:
        prompts: What to draw from.
        batch_size: Prompts on each rank in each step.
        rank, world_size: Of this process.
        seed: Of the order.
        shuffle: False keeps the dataset's order in every epoch.
        untrained_batches: Says how many of the batches handed out have not been trained on yet. They are given out
            again after a resume, so that a checkpoint written because a step failed loses no prompts.
        order: Which prompts each step gets; by default epochs of all prompts.

    Raises:
        ValueError: If the prompts do not fill one global batch.
    """

    def __init__(
        self,
        prompts: PromptDataset | MixedPrompts,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        untrained_batches: Callable[[], int] = lambda: 0,
        order: Order | None = None,
    ) -> None:
        _check_fills_a_step(prompts, batch_size, world_size)
        self.prompts = prompts
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.shuffle = shuffle
        self.untrained_batches = untrained_batches
        self.epoch = 0
        self.next_batch = 0
        self.order = order or EpochOrder(len(prompts), batch_size * world_size, seed, shuffle)
        self._ahead: tuple[list[int], PromptBatch] | None = None

    def __len__(self) -> int:
        """Batches of an epoch, the same on every rank."""
        return len(self.prompts) // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[PromptBatch]:
        # Lightning makes iterators that it does not use, and makes one before it sets the epoch: so creating one
        # changes nothing, and every step reads the place anew.
        while self.next_batch < len(self):
            self.next_batch += 1
            ahead, self._ahead = self._ahead, None
            if ahead is not None and ahead[0] == self._places(self.epoch, self.next_batch - 1):
                yield ahead[1]
            else:
                yield self.batch_at(self.epoch, self.next_batch - 1)
        self.set_epoch(self.epoch + 1)

    def following_place(self, limit: int | None = None) -> tuple[int, int]:
        """(epoch, batch) of what comes after the batch that was handed out last; the loader stays where it is.

        Args:
            limit: Batches of an epoch, where the Trainer ends it early (trainer.limit_train_batches).
        """
        is_inside = self.next_batch < min(len(self), limit or len(self))
        return (self.epoch, self.next_batch) if is_inside else (self.epoch + 1, 0)

    def batch_at(self, epoch: int, batch: int) -> PromptBatch:
        """This rank's prompts at a place, wherever the loader is."""
        return self.prompts.batch(self._places(epoch, batch))

    def batch_ahead(self, epoch: int, batch: int) -> PromptBatch:
        """The same, of the step that comes next, which is then handed this very object."""
        places = self._places(epoch, batch)
        self._ahead = places, self.prompts.batch(places)
        return self._ahead[1]

    def _places(self, epoch: int, batch: int) -> list[int]:
        mine = training_rows(0, self.batch_size, self.rank, self.world_size)
        return list(self.order.places(epoch, batch)[mine.start : mine.stop])

    @property
    def sampler(self) -> TrainingLoader:
        """Itself: Lightning calls ``loader.sampler.set_epoch`` at the start of every epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch, unless it is the current one: a resumed epoch goes on where it was."""
        if epoch != self.epoch:
            self.epoch, self.next_batch = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the next batch to train on, and what must be the same for that place to mean the same."""
        place = {"epoch": self.epoch, "next_batch": max(0, self.next_batch - self.untrained_batches())}
        order = {"order": self.order.state_dict()} | noted(self.prompts)
        return place | {"batches": len(self)} | order | self._identity()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a saved place; where the prompts are as many others, with a warning.

        Raises:
            OtherDataError: If it is of a stream, or lies inside an epoch and the data, the seed or the global batch are other
                ones now.
        """
        if "cursor" in state:
            raise OtherDataError(
                "The checkpoint's data is a stream, and data.streaming is false. Use the data settings of the first run."
            )
        inside = 0 < state["next_batch"] < state["batches"]
        changed = {key: (state[key], now) for key, now in self._identity().items() if state[key] != now}
        if inside and changed:
            found = ", ".join(
                f"{IN_WORDS.get(key, key)} was {then} and is {now}" for key, (then, now) in changed.items()
            )
            raise OtherDataError(
                f"The checkpoint was written inside epoch {state['epoch']}, and the rest of that epoch cannot be "
                f"continued: {found}. Use the data settings and the number of devices of the first run."
            )
        if inside or state.get("order"):
            say_what_changed(state, self.prompts, state["epoch"])
        self.epoch, self.next_batch = state["epoch"], state["next_batch"]
        self.order.load_state_dict(state.get("order", {}))

    def _identity(self) -> dict[str, Any]:
        return {
            "prompts": len(self.prompts),
            "prompts_per_step": self.batch_size * self.world_size,
            "data.seed": self.seed,
            "data.shuffle": self.shuffle,
        }


class EvaluationLoader:
    """Each prompt exactly once over all ranks, in the dataset's order; nothing is repeated to fill a batch.

    Every rank runs the same number of batches. Batches differ in size by at most one prompt per rank, and are empty on
    some ranks only where there are fewer prompts than ranks (see ``evaluation_rows``).

    Args:
        prompts: What to evaluate on.
        batch_size: At most so many prompts on each rank at a time.
        rank, world_size: Of this process.
    """

    def __init__(self, prompts: PromptDataset, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.prompts = prompts
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return num_evaluation_batches(len(self.prompts), self.batch_size, self.world_size)

    def __iter__(self) -> Iterator[PromptBatch]:
        for batch in range(len(self)):
            yield self.prompts.batch(
                evaluation_rows(batch, len(self.prompts), self.batch_size, self.rank, self.world_size)
            )


def check_epoch(
    prompts: PromptDataset | MixedPrompts, batch_size: int, world_size: int, trainer: Trainer | None
) -> None:
    """Raises ValueError, in the words of the config, if an epoch has no step, or no evaluation where one is asked for."""
    _check_fills_a_step(prompts, batch_size, world_size)
    _check_reaches_evaluation(trainer, len(prompts) // (batch_size * world_size))


def _check_fills_a_step(prompts: PromptDataset | MixedPrompts, batch_size: int, world_size: int) -> None:
    needed = batch_size * world_size
    if len(prompts) >= needed:
        return
    ranks = f" on each of {world_size} devices need {needed} prompts" if world_size > 1 else f" need {needed} prompts"
    dropped = f" ({prompts.num_dropped} longer ones were dropped)" if prompts.num_dropped else ""
    fitting = len(prompts) // world_size
    advice = f"Set data.batch_size to at most {fitting}" if fitting else f"Use at most {len(prompts)} devices"
    raise ValueError(
        f"data.batch_size={batch_size} prompts{ranks} for a step, but {prompts.name} has {len(prompts)}{dropped}. "
        f"{advice}, or bring more data."
    )


def _check_reaches_evaluation(trainer: Trainer | None, steps: int) -> None:
    interval = getattr(trainer, "val_check_interval", None)
    if trainer is None or not isinstance(interval, int) or trainer.check_val_every_n_epoch is None:
        return
    limit = trainer.limit_train_batches
    steps = min(steps, limit) if isinstance(limit, int) else int(steps * limit)
    if interval > steps:
        raise ValueError(
            f"trainer.val_check_interval={interval} steps is never reached: an epoch has {steps}, and every epoch counts "
            "anew. Set trainer.check_val_every_n_epoch to null to count on through epochs, or choose a smaller interval."
        )
