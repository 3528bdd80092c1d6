"""Held-out accuracy, reward and loss in words, each time they are measured: now, last time, at the start."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from grpo_lightning.callbacks.samples import show
from grpo_lightning.callbacks.summary import BeforeAfterSummary

SPOKEN: dict[str, Callable[[float], str]] = {
    "accuracy": "{:.1%}".format,
    "rewards/accuracies": "{:.1%}".format,  # of pairs; the name is TRL's
    "reward": "{:.3f}".format,
    "loss": "{:.4f}".format,
}


class HeldOutLine(Callback):
    """Prints ``step 200  held-out accuracy 77.0% (was 68.0%, start 34.2%)`` after each evaluation during training."""

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        """By metric, the first value of the run; before the first step where BeforeAfterSummary measured it."""
        self.last: dict[str, float] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints a line per metric and dataset on the first rank."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        loaders = trainer.val_dataloaders
        datasets = [f"{name}/" for name in loaders] if isinstance(loaders, dict) and len(loaders) > 1 else [""]
        for dataset, kind in product(datasets, SPOKEN):
            name = f"val/{dataset}{kind}"
            if name in trainer.callback_metrics:
                line = self._line(trainer, name, kind, float(trainer.callback_metrics[name]))
                if trainer.is_global_zero:
                    show(f"step {pl_module.steps_done}  held-out {dataset.replace('/', ' ')}{line}")

    def _line(self, trainer: Trainer, name: str, kind: str, value: float) -> str:
        """``accuracy 77.0% (was 68.0%, start 34.2%)``, the value remembered."""
        say = SPOKEN[kind]
        if (
            name not in self.first and name == f"val/{kind}"
        ):  # one dataset: BeforeAfterSummary's is over the same prompts
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, BeforeAfterSummary) and callback.before is not None:
                    self.first[name] = callback.before["metrics"][kind]
        known = [f"was {say(self.last[name])}"] if name in self.last else []
        known += [f"start {say(self.first[name])}"] if name in self.first else []
        self.first.setdefault(name, value)
        self.last[name] = value
        return f"{kind} {say(value)}" + (f" ({', '.join(known)})" if known else "")

    def state_dict(self) -> dict[str, Any]:
        """A resumed run goes on comparing."""
        return {"first": self.first, "last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores both."""
        self.first, self.last = state_dict["first"], state_dict["last"]
