"""Which device a run may ask for, and whether it is there."""

from __future__ import annotations

from typing import Any

import torch

SUPPORTED = ("auto", "cpu", "gpu", "cuda", "mps")


def check_accelerator(accelerator: Any) -> None:
    """Refuses an accelerator by name that this machine lacks.

    Args:
        accelerator: ``trainer.accelerator``; objects are their maker's business.

    Raises:
        ValueError: With what there is.
    """
    if not isinstance(accelerator, str):
        return
    setting = f"trainer.accelerator={accelerator}"
    if accelerator not in SUPPORTED:
        raise ValueError(f"{setting} is none that a run can train on. Use one of {', '.join(SUPPORTED)}.")
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if (accelerator == "cuda" and not has_cuda) or (accelerator == "gpu" and not (has_cuda or has_mps)):
        build = "" if torch.version.cuda else f", and this torch ({torch.__version__}) is built without CUDA"
        raise ValueError(
            f"{setting}, but torch sees no GPU here{build}. Use trainer.accelerator=cpu, or look at nvidia-smi and "
            "CUDA_VISIBLE_DEVICES."
        )
    if accelerator == "mps" and not has_mps:
        raise ValueError(f"{setting}, but this is no Apple GPU. Use trainer.accelerator=cpu.")
