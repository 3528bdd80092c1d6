"""What is counted of rollouts of several turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from grpo_lightning.messages import StopReason
from grpo_lightning.types import Conversation

STOPS: tuple[str, ...] = get_args(StopReason)


def turn_counts(conversations: Sequence[Conversation]) -> dict[str, Tensor]:
    """Entries of the means that are logged of them; empty for rollouts of one turn."""
    if not conversations:
        return {}
    kept = [each for each in conversations if not each.is_fault]
    calls = sum(each.calls for each in kept)
    entries = {f"rollouts/stop/{stop}": [float(each.stop == stop) for each in conversations] for stop in STOPS}
    entries |= {
        "rollouts/turns": [float(each.turns) for each in kept],
        "rollouts/histories": [float(max(1, len(each.branches))) for each in kept],
        "tools/call_frequency": [float(each.calls) for each in kept],
        "tools/failure_frequency": [sum(each.mistakes for each in kept) / calls] if calls else [],
    }
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in entries.items()}
