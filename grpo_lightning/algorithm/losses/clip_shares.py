"""How many tokens, or completions, a clip has touched."""

from __future__ import annotations

from torch import Tensor

from grpo_lightning.algorithm.metric_sums import mean_over
from grpo_lightning.algorithm.token_batch import LossInputs


def clip_shares(inputs: LossInputs, clipped: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and count of the clipped, and ``(M,)`` the share in each completion.

    Counted are tokens, or completions where the ratio belongs to the completion.

    Args:
        inputs: Of the loss.
        clipped: ``(T,)`` bool.
    """
    flags = clipped.to(inputs.ratio.dtype)
    per_completion = inputs.segments.mean(flags)
    if inputs.level == "token":
        return mean_over(flags, inputs.segments.mask), per_completion
    return mean_over(per_completion, inputs.segments.lengths > 0), per_completion
