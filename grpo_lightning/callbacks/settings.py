"""The settings that a checkpoint was made with: a run that goes on with others says so."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from grpo_lightning.report.run import flat_settings


class SettingsRecord(Callback):
    """Keeps settings in checkpoints and compares them on a resume.

    Args:
        settings: Nested, as in a config.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = flat_settings(settings)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the settings, as text."""
        checkpoint["settings"] = self.settings

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Warns of settings that are others now. Some may change on purpose, so none is refused."""
        if trainer.state.fn != "fit":  # evaluation of a checkpoint under settings of its own
            return
        saved: dict[str, str] = checkpoint.get("settings", {})
        changed = [
            f"{name} was {saved.get(name, 'not set')}, is {self.settings.get(name, 'not set')}"
            for name in sorted(saved.keys() | self.settings.keys())
            if saved.get(name) != self.settings.get(name)
        ]
        if saved and changed:
            rank_zero_warn(
                f"This run goes on from a checkpoint that was made with other settings: {'; '.join(changed)}."
            )
