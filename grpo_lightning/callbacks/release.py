"""What a run holds outside Python (engines, servers, reward workers) is given back after an error too."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer


class ReleaseOnError(Callback):
    """Tears the module down when a run ends by an error or an interrupt, for which Lightning does not."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the generator's engine and the reward workers."""
        pl_module.teardown(str(trainer.state.fn))
