"""``config.yaml`` beside the numbers of a launch, written before any weights are loaded."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from grpo_lightning.metrics.diagnostics import not_begun


class SavedConfig(SaveConfigCallback):
    """Lightning's callback, which says what could not be written: the system's error names no file where a disk is full."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes on the first rank.

        Raises:
            ExplainedError: If the file cannot be written.
        """
        folder = trainer.log_dir  # on every rank: it is sent
        try:
            super().setup(trainer, pl_module, stage)
        except OSError as error:
            raise not_begun(Path(str(folder), self.config_filename), error) from error
