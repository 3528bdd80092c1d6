"""How the sides of a comparison train: whether activations are kept, and how many tokens a pass has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Way:
    """One side."""

    checkpointing: bool
    """Whether activations are computed again in the backward pass, which takes less memory. TRL's default is True, ours False."""
    share: float = 1.0
    """Of the workload's tokens in one pass (ours alone)."""


SIDES = {
    "trl": Way(checkpointing=True),
    "trl_no_checkpointing": Way(checkpointing=False),
    "ours": Way(checkpointing=False),
    "ours_half": Way(checkpointing=False, share=0.5),
    "ours_checkpointing": Way(checkpointing=True),
}
"""By name, which begins with whose it is."""
