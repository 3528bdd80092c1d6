"""The settings that a checkpoint was made with: a run that goes on with others applies them, and says so."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim.lr_scheduler import LambdaLR

from grpo_lightning.errors import ExplainedError
from grpo_lightning.report.small_files import flat_settings

OPTIMIZER, SCHEDULER = "model.optimizer", "model.lr_scheduler"


class SettingsRecord(Callback):
    """Keeps settings in checkpoints, compares them on a resume and makes those of this run count.

    A checkpoint brings the optimizer and its schedule as they were. Arguments of the optimizer that are others now are set
    over what it brought, a schedule's rates in proportion; so are those of a schedule that is a function of the step. Another
    optimizer, or another schedule, cannot go on from the state of the first and is refused. Every other setting takes effect
    by being this run's.

    Args:
        settings: Nested, as in a config.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = flat_settings(settings)
        self._changed: dict[str, str] = {}
        self._said = ""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the settings, as text."""
        checkpoint["settings"] = self.settings

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Finds which settings are others now.

        Raises:
            ExplainedError: If the optimizer or its schedule is another.
        """
        if trainer.state.fn != "fit":  # evaluation of a checkpoint under settings of its own
            return
        saved: dict[str, str] = checkpoint.get("settings", {})
        changed = {
            name: f"{name} was {saved.get(name, 'not set')}, is {self.settings.get(name, 'not set')}"
            for name in sorted(saved.keys() | self.settings.keys())
            if saved.get(name) != self.settings.get(name)
        }
        if not saved or not changed:
            return
        classes = [f"{part}.class_path" for part in (OPTIMIZER, SCHEDULER)]
        _refuse([text for name, text in changed.items() if name in classes])
        self._changed = {name: text for name, text in changed.items() if name.startswith((OPTIMIZER, SCHEDULER))}
        self._said = "; ".join(changed.values())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says which settings are others, and sets the optimizer's arguments to those of this run.

        Not before: data that cannot go on is refused once the checkpoint is read, and what has been promised of it would be wrong.

        Raises:
            ExplainedError: If the arguments of a schedule have changed that cannot be told where it would be now.
        """
        if self._said:
            rank_zero_warn(
                "This run goes on from a checkpoint that was made with other settings, which apply from the next step on: "
                f"{self._said}."
            )
            self._said = ""
        if not self._changed:
            return
        made: Any = pl_module.configure_optimizers()
        fresh = made["optimizer"] if isinstance(made, dict) else made
        schedule: Any = trainer.lr_scheduler_configs[0].scheduler if trainer.lr_scheduler_configs else None
        if not isinstance(schedule, LambdaLR):
            _refuse([text for name, text in self._changed.items() if name.startswith(SCHEDULER)])
        for index, (group, new) in enumerate(zip(trainer.optimizers[0].param_groups, fresh.param_groups, strict=True)):
            rate, start = group["lr"], group.get("initial_lr", group["lr"])
            group |= {name: value for name, value in new.items() if name != "params"}
            if schedule is None:
                continue
            base = group["initial_lr"]
            factor = schedule.lr_lambdas[index](schedule.last_epoch) if isinstance(schedule, LambdaLR) else rate / start
            group["lr"] = schedule._last_lr[index] = base * factor
            schedule.base_lrs[index] = base


def _refuse(changes: list[str]) -> None:
    if changes:
        raise ExplainedError(
            f"The checkpoint holds the state of another optimizer or schedule: {'; '.join(changes)}. Set what it was, or "
            "export the policy and start a new run from it (model.model_name_or_path)."
        )
