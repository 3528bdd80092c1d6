"""An evaluation without training, as of `validate`: the step that it is logged at, and the table of several datasets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch import Callback
from rich.table import Table

from grpo_lightning.callbacks.samples import show


class LoneEvaluation(Callback):
    """Puts the metrics of ``validate`` and ``test`` where those of the run's own evaluations are.

    Lightning logs them at the steps that this Trainer has made: none, in a process that only evaluates. In a run the evaluation
    after step N has N - 1 beside it, as that step has, and so it has here, whoever made the N steps. Its table shows the metrics of
    every dataset in the column of each, since they are logged together.
    """

    def __init__(self) -> None:
        self._of_trainer: int | None = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Counts from the weights, and takes over the table where there are several datasets."""
        if trainer.state.fn not in ("validate", "test"):
            return
        counted = trainer.fit_loop.epoch_loop
        self._of_trainer = counted._batches_that_stepped
        counted._batches_that_stepped = max(int(pl_module.steps_done) - 1, 0)  # type: ignore[arg-type]
        loop, loaders = (
            (trainer.test_loop, trainer.test_dataloaders)
            if trainer.testing
            else (trainer.validate_loop, trainer.val_dataloaders)
        )
        names = list(loaders) if isinstance(loaders, dict) else []
        if len(names) > 1:
            loop._print_results = partial(_show_table, names)  # type: ignore[method-assign]
        else:
            vars(loop).pop("_print_results", None)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gives the Trainer its own count back."""
        if self._of_trainer is not None:
            trainer.fit_loop.epoch_loop._batches_that_stepped = self._of_trainer
        self._of_trainer = None

    on_test_start = on_validation_start
    on_test_end = on_validation_end

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """As at the end."""
        self.on_validation_end(trainer, pl_module)


def _show_table(names: Sequence[str], results: Sequence[dict[str, Any]], stage: str) -> None:
    show(table_of(results[0], names, stage))  # each of the results has the metrics of all datasets


def table_of(metrics: dict[str, Any], names: Sequence[str], stage: str) -> Table:
    """A row per metric and a column per dataset.

    Args:
        metrics: ``val/<dataset>/<metric>`` of all of them.
        names: Of the datasets, in their order.
        stage: validate or test.

    Example:
        >>> table = table_of({"val/a/reward": 0.5, "val/b/reward": 1.0, "val/b/accuracy": 0.25}, ["a", "b"], "validate")
        >>> [list(column.cells) for column in table.columns]
        [['val/reward', 'val/accuracy'], ['0.5', ''], ['1', '0.25']]
    """
    rows: dict[str, dict[str, str]] = {}
    for metric, value in metrics.items():
        start, _, rest = metric.partition("/")
        name = next((each for each in names if rest.startswith(f"{each}/")), "")
        rows.setdefault(f"{start}/{rest.removeprefix(f'{name}/')}", {})[name] = f"{float(value):.6g}"
    table = Table(f"{stage.capitalize()} metric")
    for name in names:
        table.add_column(name, justify="right")
    for metric, values in rows.items():
        table.add_row(metric, *(values.get(name, "") for name in names))
    return table
