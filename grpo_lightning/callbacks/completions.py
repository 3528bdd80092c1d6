"""Writes completions with their rewards as Parquet while a run trains."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch import Callback, LightningModule, Trainer

from grpo_lightning.algorithm.advantages import combine_rewards
from grpo_lightning.callbacks.completion_rows import completions_table
from grpo_lightning.metrics.diagnostics import removed_on_error, skipped_if_not_written
from grpo_lightning.metrics.step_report import StepRecord

MAX_FILES = 2000
"""Files per rank: a directory of tens of thousands of small files is slow to list and to read."""

MIB = 2**20

_FILE_NAME = re.compile(r"step-(\d+)\.rank(\d+)\.parquet(\.part)?$")


class CompletionWriter(Callback):
    """Writes prompts, completions, rewards and advantages into ``completions/``, one Parquet file per step and rank.

    A file appears under its name only when it is complete, so a killed run leaves readable files and
    ``pyarrow.parquet.read_table(directory)`` or ``pandas.read_parquet(directory)`` can follow a running one. A resumed
    run first removes the steps that it is about to repeat; a run that starts again from the beginning in the same
    directory replaces them all.

    Args:
        dirpath: Where to; by default ``completions`` in trainer.default_root_dir.
        every_n_steps: Write the completions of every so many GRPO steps; 0 writes none.
        max_rows_per_step: Completions kept of a step, over all ranks: whole groups, the same prompts each time they
            come up.
        max_mib: Megabytes that all files may take. Beyond it every second step is dropped, the first and the last
            excepted: the history gets sparser, never shorter.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_steps: int = 1,
        max_rows_per_step: int = 256,
        max_mib: float = 512.0,
    ) -> None:
        if every_n_steps < 0:
            raise ValueError(f"completions.every_n_steps={every_n_steps} is negative. Use 0 to write none.")
        if max_rows_per_step < 1 or max_mib <= 0:
            raise ValueError(
                f"completions.max_rows_per_step={max_rows_per_step} and completions.max_mib={max_mib} must be above 0. "
                "Set completions.every_n_steps=0 to write no completions."
            )
        self.dirpath = None if dirpath is None else os.path.abspath(dirpath)
        self.every_n_steps = every_n_steps
        self.max_rows_per_step = max_rows_per_step
        self.max_mib = max_mib
        self._sizes: dict[int, int] = {}  # step -> bytes of this rank's file

    def directory(self, trainer: Trainer) -> Path:
        """Where the files are."""
        return Path(self.dirpath) if self.dirpath else Path(trainer.default_root_dir) / "completions"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes what an earlier, longer run wrote of the steps that now come, and what a kill left half-written."""
        if not self.every_n_steps or not hasattr(pl_module, "last_step"):  # supervised training samples nothing
            return
        directory = self.directory(trainer)
        first_step: int = pl_module.steps_done  # type: ignore[assignment]
        if trainer.is_global_zero:
            with skipped_if_not_written(directory / "step-*.parquet"):
                directory.mkdir(parents=True, exist_ok=True)
                for path, step, _, is_part in _files(directory):
                    if step >= first_step or is_part:
                        path.unlink(missing_ok=True)
        trainer.strategy.barrier("completions")
        mine = [(path, step) for path, step, rank, _ in _files(directory) if rank == trainer.global_rank]
        self._sizes = {step: path.stat().st_size for path, step in mine}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes the step that has just ended."""
        record: StepRecord | None = getattr(pl_module, "last_step", None)
        if not self.every_n_steps or record is None or not len(record.batch):
            return
        step: int = pl_module.steps_done - 1  # type: ignore[operator, assignment]
        if step % self.every_n_steps:
            return
        table = step_table(pl_module, step, max(1, self.max_rows_per_step // trainer.world_size))
        path = self._path(trainer, step)
        with skipped_if_not_written(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            with removed_on_error(part):
                pq.write_table(table, part, compression="zstd")
                os.replace(part, path)
            self._sizes[step] = path.stat().st_size
            self._thin_out(trainer)

    def _path(self, trainer: Trainer, step: int) -> Path:
        return self.directory(trainer) / f"step-{step:08d}.rank{trainer.global_rank}.parquet"

    def _thin_out(self, trainer: Trainer) -> None:
        """Drops every second step while this rank's files are over its share of ``max_mib``, or too many."""
        budget = self.max_mib * MIB / trainer.world_size
        while (sum(self._sizes.values()) > budget or len(self._sizes) > MAX_FILES) and len(self._sizes) > 2:
            for step in sorted(self._sizes)[1:-1:2]:
                self._path(trainer, step).unlink(missing_ok=True)
                del self._sizes[step]


def step_table(module: Any, step: int, max_rows: int) -> pa.Table:
    """The last step's completions of this rank as a table, see ``completions_table``.

    Args:
        module: With a ``last_step`` that has prompts.
        step: Its number, from 0.
        max_rows: At least 1.
    """
    record: StepRecord = module.last_step
    texts = module.source.texts.completions(record.batch, record.rollouts)
    values, weights = module.source.composed(record.rewards)
    totals = combine_rewards(values, weights).tolist()
    return completions_table(record, texts, totals, step, max_rows)


def _files(directory: Path) -> list[tuple[Path, int, int, bool]]:
    """(path, step, rank, whether it is unfinished) of the files in ``directory``."""
    found = []
    for path in sorted(directory.glob("step-*.parquet*")):
        match = _FILE_NAME.match(path.name)
        if match:
            found.append((path, int(match[1]), int(match[2]), match[3] is not None))
    return found
