"""What Lightning says to modules that step their optimizers themselves, and that is wrong of these: nobody hears it."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import lightning as L
from lightning.pytorch import Callback


class NoWrongAdvice(Callback):
    """Silences two warnings of Lightning's while these modules are trained, or predict, and no longer.

    ModelCheckpoint advises to keep the weights before a step, and the state after a step is the one to resume from. A prediction
    of a loader without a batch sampler is said to be without indices: the rows of our batches say what they are.
    """

    def __init__(self) -> None:
        self._filter: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Adds a filter to those of the process."""
        self._silence("Using ModelCheckpoint with manual optimization and every_n")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The same for predictions."""
        self._silence("Couldn't infer the batch indices fetched from your dataloader")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the filter away, and no other that was added meanwhile."""
        if self._filter in warnings.filters:
            warnings.filters.remove(self._filter)  # type: ignore[attr-defined]  # a list, which typeshed has as a sequence

    on_predict_end = on_train_end

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """As at the end."""
        self.on_train_end(trainer, pl_module)

    def _silence(self, start: str) -> None:
        warnings.filterwarnings("ignore", message=start)
        self._filter = warnings.filters[0]


def settle_results(results: Mapping[str, Any], names: Collection[str]) -> None:
    """Computes logged means before Lightning does, which advises ``sync_dist`` then: they are of all ranks already.

    Args:
        results: The Trainer's, of the round that has ended.
        names: Of what was logged.
    """
    for result in results.values():
        if result.meta.name in names:
            result.compute()
