"""Metrics that callbacks wait for: one that does not exist is refused, held-out ones before weights load."""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from grpo_lightning.callbacks.samples import show
from grpo_lightning.callbacks.step_bar import planned_steps
from grpo_lightning.callbacks.summary import BeforeAfterSummary
from grpo_lightning.errors import ExplainedError


class MonitorCheck(Callback):
    """Refuses a ``monitor`` of ModelCheckpoint or EarlyStopping that no metric has the name of.

    Held-out metrics have names that the settings tell. What a step logs is known once the first one has ended. A run that ends
    before its first evaluation is refused where something waits for it, else it says so.
    """

    def __init__(self) -> None:
        self._knows_steps = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks at the names that begin as held-out metrics do, where the module is one of this package and logs no others.

        Raises:
            ValueError: Naming the setting and what there is.
        """
        means: Any = getattr(pl_module, "evaluation_means", None)
        if stage != "fit" or means is None or not type(pl_module).__module__.startswith("grpo_lightning."):
            return
        datasets = list(getattr(getattr(trainer, "datamodule", None), "eval_prompts", {}))
        for setting, name in monitored(trainer):
            if not is_held_out(name):
                continue
            if not datasets:
                raise ValueError(
                    f"{setting}={name} is measured on held-out prompts, and data.eval_dataset is not set. Set it."
                )
            prefixes = [f"val/{dataset}" for dataset in datasets] if len(datasets) > 1 else ["val"]
            known = [f"{prefix}/{each}" for prefix in prefixes for each in means().names]
            if name not in known:
                raise ValueError(no_metric(setting, name, known))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says that nothing will be evaluated, where that is so.

        Raises:
            ExplainedError: If a ``monitor`` waits for it: no best checkpoint would be written.
        """
        why = never_evaluated(trainer, pl_module) if hasattr(pl_module, "num_updates") else None
        if why is None:
            return
        waiting = next((f"{setting}={name}" for setting, name in monitored(trainer) if is_held_out(name)), None)
        if waiting is not None:
            raise ExplainedError(f"{waiting} would never be measured. {why}")
        is_shown = any(isinstance(callback, BeforeAfterSummary) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if trainer.is_global_zero and not is_shown:
            show(why)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the other names, once.

        Raises:
            ExplainedError: Naming the setting and what there is.
        """
        if self._knows_steps:
            return
        self._knows_steps = True
        known = list(trainer.callback_metrics)
        for setting, name in monitored(trainer):
            if not is_held_out(name) and name not in known:
                raise ExplainedError(no_metric(setting, name, known))


def monitored(trainer: Trainer) -> list[tuple[str, str]]:
    """Settings of this run that name a metric, and the metrics."""
    found = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping):
            found.append(("monitor of EarlyStopping (trainer.callbacks)", callback.monitor))
        elif isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            found.append(("checkpoint.monitor", callback.monitor))
    return found


def is_held_out(name: str) -> bool:
    """Whether a metric has the name of one that evaluations log, here or in a subclass; ``value/mean`` has not.

    Example:
        >>> [is_held_out(name) for name in ("val/accuracy", "valid_loss", "value/mean")]
        [True, True, False]
    """
    return name.startswith("val") and not name.startswith("value")


def no_metric(setting: str, name: str, known: list[str]) -> str:
    """The message, with the nearest names."""
    near = get_close_matches(name, known, 3, cutoff=0.5)
    meant = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(sorted(known)[:12])}."
    return f"{setting}={name} is no metric of this run, so it would wait for ever. {meant}"


def first_evaluation(trainer: Trainer) -> int | None:
    """Steps after which held-out data is evaluated for the first time, as far as ``trainer.*`` tells.

    Args:
        trainer: When training starts, with its loaders.

    Returns:
        None where time decides, or a stream whose end is not known.
    """
    epochs, batches, epoch = trainer.check_val_every_n_epoch, trainer.val_check_batch, trainer.num_training_batches
    if getattr(trainer, "_val_check_time_interval", None) is not None or batches is None or not math.isfinite(batches):
        return None
    if epochs is None or epochs == 1:
        return int(batches)
    return int((epochs - 1) * epoch + batches) if math.isfinite(epoch) else None


def never_evaluated(trainer: Trainer, module: Any) -> str | None:
    """Why the run ends before its first evaluation, and what to set; None where it does not, or nothing is held out."""
    held_out = getattr(getattr(trainer, "datamodule", None), "eval_prompts", None)
    first, steps = first_evaluation(trainer), planned_steps(trainer, module.num_updates)
    if not held_out or not trainer.limit_val_batches or first is None or steps is None or first <= steps:
        return None
    return (
        f"data.eval_dataset is not evaluated in this run: it ends after step {steps:,}, and the first evaluation would come after "
        f"step {first:,}. Set trainer.val_check_interval to at most {steps}, with trainer.check_val_every_n_epoch: null."
    )
