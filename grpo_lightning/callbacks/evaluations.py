"""Whether a run reaches an evaluation of its held-out data: Lightning says nothing of one that never does."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Trainer

from grpo_lightning.callbacks.step_bar import planned_steps


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
