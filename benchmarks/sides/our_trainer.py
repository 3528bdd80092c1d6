"""Lightning's Trainer as all benchmarks of this project have it: one device, and nothing beside training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-true", "mixed": "bf16-mixed"}
"""Of the Trainer, by what a workload calls its weights' dtype."""


def make_trainer(device: str, precision: str, max_steps: int, folder: str | Path, **further: Any) -> L.Trainer:
    """Writes no logs and no checkpoints, and shows nothing.

    Args:
        device: cpu or cuda.
        precision: Of the Trainer.
        max_steps: Optimizer steps.
        folder: The default root.
        **further: Arguments of the Trainer.
    """
    return L.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision=precision,  # type: ignore[arg-type]  # of the command line
        max_steps=max_steps,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **further,
    )
