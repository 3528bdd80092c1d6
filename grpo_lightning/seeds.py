"""Randomness as a function of counters: seeds for prompts, steps and ranks."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on every part: run seed, step, prompt, ...

    Randomness that is a function of counters needs no random state in a checkpoint to resume exactly.

    Example:
        >>> derive_seed(0, 1, 2) == derive_seed(0, 1, 2), derive_seed(0, 1, 2) == derive_seed(0, 2, 1)
        (True, False)
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_everything(*parts: int | str) -> None:
    """Seeds Python, NumPy and torch (every device) from these parts, at the start of a step.

    Whatever draws from the global generators during a step (dropout, a reward) then repeats after a resume.
    """
    seed = derive_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def forked_seed(*parts: int | str, device: torch.device | None = None) -> Iterator[None]:
    """Seeds torch from these parts inside the block; afterwards its generators go on as if nothing had happened.

    Args:
        parts: See ``derive_seed``.
        device: The one that is used inside, whose generator goes on as before; those of other devices stay seeded, untouched
            where they were never used. None for all.
    """
    devices = range(torch.cuda.device_count()) if device is None else [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(*parts))
        yield
