"""Writes what ``predict`` generates: one JSON object per line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from grpo_lightning.errors import ExplainedError, to_write
from grpo_lightning.rewards.text.valid_text import json_text


class PredictionWriter(BasePredictionWriter):
    """Appends the rows of every predicted batch to a JSONL file; each rank writes its own.

    Args:
        path: The file; by default predictions.jsonl in trainer.default_root_dir. Ranks after the first add
            ``.rank1``, ``.rank2``, ... before the suffix.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.path = path

    def _file(self, trainer: Trainer) -> Path:
        path = Path(self.path) if self.path else Path(trainer.default_root_dir) / "predictions.jsonl"
        return path if trainer.global_rank == 0 else path.with_suffix(f".rank{trainer.global_rank}{path.suffix}")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts an empty file, so that rows of an earlier run are not mistaken for this one's."""
        path = self._file(trainer)
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("", encoding="utf-8")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[dict[str, Any]],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Appends one line per completion, with its dataset's name where there are several."""
        path, loaders = self._file(trainer), trainer.predict_dataloaders
        names = list(loaders) if isinstance(loaders, dict) and len(loaders) > 1 else []
        dataset = {"dataset": names[dataloader_idx]} if names else {}
        with _explained(path), path.open("a", encoding="utf-8") as file:
            for row in prediction:
                file.write(json_text(dataset | row | dataset) + "\n")  # also where a column has that name

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says where the rows are."""
        if trainer.global_rank == 0:
            print(f"Completions written to {self._file(trainer)}")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """They are what ``predict`` is for, so that a disk that is full ends it."""
    try:
        yield
    except OSError as error:
        raise ExplainedError(
            f"The completions could not be written to {path} ({error}). "
            f"{to_write(error, 'Free disk space, or make its folder writable')}, and run predict again."
        ) from error
