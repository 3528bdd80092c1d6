"""Exports the policy in Hugging Face format beside Lightning's checkpoints."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class HuggingFaceExport(Callback):
    """Writes the policy and tokenizer as a directory that ``from_pretrained`` and vLLM load.

    A directory appears under its name only when it is complete; one that is being replaced stays until then.

    Args:
        dirpath: Where to; by default ``hf`` in trainer.default_root_dir.
        every_n_steps: Also export every so many GRPO steps, into ``step-N``; 0 for the end of training only.
    """

    def __init__(self, dirpath: str | None = None, every_n_steps: int = 0) -> None:
        self.dirpath = dirpath
        self.every_n_steps = every_n_steps

    def _root(self, trainer: Trainer) -> Path:
        return Path(self.dirpath) if self.dirpath else Path(trainer.default_root_dir) / "hf"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Exports at the chosen steps."""
        step: int = pl_module.steps_done  # type: ignore[assignment]
        if self.every_n_steps and step % self.every_n_steps == 0:
            export(pl_module, self._root(trainer) / f"step-{step}", trainer.is_global_zero)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exports the final policy into ``last``."""
        export(pl_module, self._root(trainer) / "last", trainer.is_global_zero)


def export(module: Any, path: Path, is_writer: bool = True) -> None:
    """Writes ``module.policy`` and ``module.tokenizer`` to ``path``, all or nothing."""
    if not is_writer:
        return
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    module.policy.save_pretrained(part)
    module.tokenizer.save_pretrained(part)
    old = path.with_name(path.name + ".old")
    if path.exists():
        os.replace(path, old)
    os.replace(part, path)
    shutil.rmtree(old, ignore_errors=True)
