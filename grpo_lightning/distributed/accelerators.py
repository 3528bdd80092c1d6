"""Which device a run may ask for, whether it is there, and how many threads torch's operators on the CPU get beside it."""

from __future__ import annotations

import os
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


GIVEN = "OMP_NUM_THREADS" in os.environ
"""Whether somebody has chosen the number, before Lightning does for its ranks."""
MOST_BESIDE_A_GPU = 4


def limit_host_threads(device: torch.device) -> None:
    """Leaves few of OpenMP's threads to a process that computes on a GPU, unless OMP_NUM_THREADS says how many.

    What is left on the CPU there are indices of some thousand tokens. As many threads as cores take longer for them, and
    wait in a loop for the next such operator, on the cores that hand kernels to the GPUs.
    """
    if device.type == "cuda" and not GIVEN:
        torch.set_num_threads(min(torch.get_num_threads(), MOST_BESIDE_A_GPU))
