"""How many threads torch's operators on the CPU get beside a GPU."""

from __future__ import annotations

import os

import torch

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
