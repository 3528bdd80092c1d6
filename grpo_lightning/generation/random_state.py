"""Engines seed and consume the global random generators; the trainer's own must not notice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch

from grpo_lightning.seeds import seed_everything


@contextmanager
def preserved_random_state(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Puts the generators of Python, NumPy and torch (CPU and ``device``) back as they were before the block.

    Args:
        device: Whose generator is kept as well, if it is an accelerator.
        seed: Seeds all of them inside the block.
    """
    python, arrays = random.getstate(), numpy.random.get_state()
    devices = [] if device.type == "cpu" else [device]
    try:
        with torch.random.fork_rng(devices=devices, device_type="cuda" if device.type == "cpu" else device.type):
            if seed is not None:
                seed_everything(seed)
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(arrays)
