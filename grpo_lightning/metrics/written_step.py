"""What a step on written data (demonstrations, pairs) tells about itself, beside what it is about."""

from __future__ import annotations

import math
import time

from torch import Tensor

from grpo_lightning.distributed.gather import gather_objects


def written_step(
    metrics: dict[str, float],
    norm: Tensor,
    tokens: int,
    started: float,
    learning_rate: float,
    changed: Tensor | None = None,
) -> dict[str, float]:
    """The numbers of a step as they are logged, the same on every rank; all ranks call it together.

    Args:
        metrics: What the step is about, the loss first; the same on every rank.
        norm: Of the gradient before clipping; not finite where the step was skipped.
        tokens: Completion tokens of the step, over all ranks.
        started: ``time.perf_counter()`` at the start of the step.
        learning_rate: After it.
        changed: 1 for each of this rank's sampled weights that differs from the start, else 0; None where none is looked at.
    """
    grad_norm = norm.item()  # waits for the device, before the clock is read
    seconds = max(gather_objects(time.perf_counter() - started))
    finite = math.isfinite(grad_norm)
    shares = [] if changed is None else gather_objects(changed.mean().item())
    return {
        **metrics,
        **({"update/changed_since_start": sum(shares) / len(shares)} if shares else {}),
        "grad_norm": grad_norm if finite else 0.0,
        "skipped_updates": float(not finite),
        "learning_rate": learning_rate,
        "step_time": seconds,
        "tokens_per_second": tokens / seconds,
    }
