"""Held-out accuracy, reward and loss in words, each time they are measured: now, last time, at the start."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from grpo_lightning.callbacks.samples import show
from grpo_lightning.callbacks.summary import BeforeAfterSummary, held_out_checksums
from grpo_lightning.distributed.due_checkpoints import is_of_earlier

SPOKEN: dict[str, Callable[[float], str]] = {
    "accuracy": "{:.1%}".format,
    "rewards/accuracies": "{:.1%}".format,  # of pairs; the name is TRL's
    "reward": "{:.3f}".format,
    "loss": "{:.4f}".format,
}


def prefixes(loaders: Any) -> list[str]:
    """What stands between ``val/`` and a metric's name, for each held-out dataset.

    Example:
        >>> prefixes(["batches"]), prefixes({"easy": ["batches"], "hard": ["batches"]})
        ([''], ['easy/', 'hard/'])
    """
    return [f"{name}/" for name in loaders] if isinstance(loaders, dict) and len(loaders) > 1 else [""]


def measured_before(trainer: Trainer) -> tuple[dict[str, float], int]:
    """By metric, what BeforeAfterSummary found before training, and the steps that were done then.

    Nothing where that is over several datasets together.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BeforeAfterSummary) and callback.before is not None:
            loaders = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
            is_of_one = prefixes(loaders) == [""]
            return callback.before["metrics"] if is_of_one else {}, callback.before.get("step", 0)
    return {}, 0


class HeldOutLine(Callback):
    """Prints ``step 200  held-out accuracy 77.0% (was 68.0%, start 34.2%)`` after each evaluation during training.

    Where nothing was measured before the first step, the first evaluation is named: ``(was 68.0%, 51.0% at step 50)``.
    """

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        """By metric, the first value of the run; before the first step where BeforeAfterSummary measured it."""
        self.first_step: dict[str, int] = {}
        """By metric, the steps that were done when that was measured."""
        self.last: dict[str, float] = {}
        self.measured: dict[str, int] | None = None
        """Checksums of what both were measured on; None of a checkpoint that does not tell."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run with other held-out data compares with nothing that was measured on the former."""
        now = held_out_checksums(trainer)
        if self.first and self.measured not in (None, now):
            rank_zero_warn(
                "The held-out data has changed since the checkpoint was written: what is measured on it from here on is not compared "
                "with what was. A best checkpoint (checkpoint.monitor) and the patience of EarlyStopping go by scores on both."
            )
            self.first, self.first_step, self.last = {}, {}, {}
        self.measured = now

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before the first step, prints what BeforeAfterSummary has just measured."""
        if self.first:
            return
        before, step = measured_before(trainer)
        for kind, say in SPOKEN.items():
            if kind in before:
                self.first[f"val/{kind}"], self.first_step[f"val/{kind}"] = before[kind], step
                if trainer.is_global_zero and not pl_module.steps_done:
                    show(f"step 0  held-out {kind} {say(before[kind])}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints a line per metric and dataset on the first rank."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        for dataset, kind in product(prefixes(trainer.val_dataloaders), SPOKEN):
            name = f"val/{dataset}{kind}"
            if name in trainer.callback_metrics and not is_of_earlier(trainer, name):
                step: int = pl_module.steps_done  # type: ignore[assignment]
                line = self._line(name, kind, float(trainer.callback_metrics[name]), step)
                if trainer.is_global_zero:
                    show(f"step {step}  held-out {dataset.replace('/', ' ')}{line}")

    def _line(self, name: str, kind: str, value: float, step: int) -> str:
        """``accuracy 77.0% (was 68.0%, start 34.2%)``, the value remembered."""
        say = SPOKEN[kind]
        value = float(f"{value:.6g}")  # in float32 87.75% would be said as 87.7%, and by the summary as 87.8%
        known = [f"was {say(self.last[name])}"] if name in self.last else []
        known += [self._first_in_words(name, say)] if name in self.first else []
        if name not in self.first:
            self.first[name], self.first_step[name] = value, step
        self.last[name] = value
        return f"{kind} {say(value)}" + (f" ({', '.join(known)})" if known else "")

    def _first_in_words(self, name: str, say: Callable[[float], str]) -> str:
        step, value = self.first_step.get(name), say(self.first[name])
        if step is None:  # of a checkpoint of earlier days
            return f"first {value}"
        return f"{value} at step {step}" if step else f"start {value}"

    def state_dict(self) -> dict[str, Any]:
        """A resumed run goes on comparing."""
        return {"first": self.first, "first_step": self.first_step, "last": self.last, "measured": self.measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores all of them."""
        self.first, self.last = state_dict["first"], state_dict["last"]
        self.first_step, self.measured = state_dict.get("first_step", {}), state_dict.get("measured")
