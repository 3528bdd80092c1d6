"""Prompts beside those of a step: of the step after it, and any others of the data."""

from __future__ import annotations

import lightning as L

from grpo_lightning.datamodules.drawing.loader import TrainingLoader
from grpo_lightning.datamodules.drawing.progress import is_last_step, place_after
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.rollouts.run_state import epoch_at
from grpo_lightning.types import PromptBatch


class FurtherPrompts:
    """What sources may ask of a run's data, once it trains, besides the batch that they are given.

    Args:
        lightning: Its trainer has the data.
        num_updates: Optimizer steps of a GRPO step.
    """

    def __init__(self, lightning: L.LightningModule, num_updates: int) -> None:
        self.lightning, self.num_updates = lightning, num_updates

    def of_next_step(self) -> tuple[float, PromptBatch] | None:
        """The epoch, with its fraction, and this rank's prompts of the step after the one in progress.

        None where training is known to end with this one.

        Raises:
            TypeError: With another loader than GRPODataModule's, which cannot tell.
        """
        trainer = self.lightning.trainer
        if is_last_step(trainer, self.num_updates):
            return None
        loader = trainer.train_dataloader
        if not isinstance(loader, TrainingLoader):
            raise TypeError(
                f"model.async_rollouts needs the loader of GRPODataModule for the next prompts; train_dataloader() gave a "
                f"{type(loader).__name__}. Leave train_dataloader as it is, or use async_rollouts=0."
            )
        place = place_after(trainer, loader, self.num_updates)
        return None if place is None else (epoch_at(trainer, *place), loader.batch_at(*place))

    def dataset(self) -> PromptDataset:
        """All that the run trains on, of GRPODataModule."""
        prompts: PromptDataset = self.lightning.trainer.datamodule.train_prompts  # type: ignore[attr-defined]
        return prompts
