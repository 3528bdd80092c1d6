"""Metrics that callbacks wait for: one that does not exist is refused, held-out ones before weights load."""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LambdaCallback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from grpo_lightning.callbacks.samples import show
from grpo_lightning.callbacks.step_bar import planned_steps
from grpo_lightning.callbacks.summary import BeforeAfterSummary
from grpo_lightning.errors import ExplainedError


class MonitorCheck(Callback):
    """Refuses a ``monitor`` of ModelCheckpoint or EarlyStopping that no metric has the name of.

    Held-out metrics have names that the settings tell. What a step logs is known once the first one has ended, and what callbacks
    and subclasses of the user's own log of held-out data after the first evaluation; what else these may log later is warned of.
    A run that ends before its first evaluation is refused where something waits for it, else it says so.

    Args:
        strict: Refuses a run that waits for an evaluation which never comes, and says of any other that it will not evaluate. A
            script may go on in another way: false only warns it, where something waits.
    """

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict
        self._knows_steps = self._knows_evaluations = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks at the names that begin as held-out metrics do, where nothing of the user's own may log others.

        Raises:
            ValueError: Naming the setting and what there is.
        """
        self._knows_steps = self._knows_evaluations = False
        if stage != "fit" or not hasattr(pl_module, "evaluation_means") or has_own_code(trainer, pl_module):
            return
        for setting, name in monitored(trainer):
            if not is_held_out(name):
                continue
            known = held_out(trainer, pl_module)
            if not known:
                raise ValueError(
                    f"{setting}={name} is measured on held-out prompts, and data.eval_dataset is not set. Set it."
                )
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
        if not self.strict:
            if waiting is not None:
                rank_zero_warn(f"{waiting} will not be measured. {why}")
            return
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
        self._knows_steps, known = True, [*logged(trainer), *getattr(pl_module, "unmeasured_metrics", ())]
        for setting, name in monitored(trainer):
            if is_held_out(name) or name in known:
                continue
            if has_own_code(trainer, pl_module):
                rank_zero_warn(f"{no_metric(setting, name, known)} This is no mistake if your own code logs it later.")
            else:
                raise ExplainedError(no_metric(setting, name, known))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the names of held-out metrics again, after the first evaluation of the run.

        Raises:
            ExplainedError: Naming the setting and what there is.
        """
        if trainer.state.fn != "fit" or trainer.sanity_checking or self._knows_evaluations:
            return
        self._knows_evaluations, known = True, [*logged(trainer), *held_out(trainer, pl_module)]
        for setting, name in monitored(trainer):
            if is_held_out(name) and name not in known:
                raise ExplainedError(no_metric(setting, name, [each for each in known if is_held_out(each)] or known))


def has_own_code(trainer: Trainer, module: LightningModule) -> bool:
    """Whether there is a module or callback of the user's, which may log anything at any time."""
    ours = ("grpo_lightning", "lightning", "pytorch_lightning")
    parts = [callback for callback in trainer.callbacks if not isinstance(callback, LambdaCallback)]  # type: ignore[attr-defined]
    has_lambdas = len(parts) < len(trainer.callbacks)  # type: ignore[attr-defined]
    return has_lambdas or any(type(part).__module__.partition(".")[0] not in ours for part in (module, *parts))


def held_out(trainer: Trainer, module: LightningModule) -> list[str]:
    """Names of what evaluations may log by the settings: one that has nothing to average leaves a metric out."""
    means: Any = getattr(module, "evaluation_means", None)
    datasets = list(getattr(getattr(trainer, "datamodule", None), "eval_prompts", {}))
    prefixes = [f"val/{dataset}" for dataset in datasets] if len(datasets) > 1 else ["val"] * len(datasets)
    return [] if means is None else [f"{prefix}/{name}" for prefix in prefixes for name in means().names]


def logged(trainer: Trainer) -> list[str]:
    """The metrics of the run so far, those too that have a value at the end of an epoch only, and what Lightning counts."""
    results: Any = trainer.fit_loop.epoch_loop._results
    names = [name for result in results.values() for name in (result.meta.name, f"{result.meta.name}_epoch")]
    return list(dict.fromkeys([*trainer.callback_metrics, *names, "epoch", "step"]))


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
