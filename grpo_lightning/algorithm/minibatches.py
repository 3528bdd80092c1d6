"""Which prompts of a step share an optimizer step: decided by their place in the global batch alone."""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_lightning.seeds import derive_seed


def minibatch_of_prompts(first: int, num_prompts: int, num_minibatches: int, *seed: int | str) -> Tensor:
    """``(num_prompts,)`` int64: the minibatch of prompts ``first``, ``first + 1``, ... of the global batch.

    Each run of ``num_minibatches`` neighbours is dealt out at random, one to each minibatch. So the answer for a prompt
    is the same whichever rank asks, and any rank's prompts, neighbours too, are spread evenly over the minibatches.

    Args:
        first: Place of the first prompt in the global batch.
        num_prompts: Prompts of this rank.
        num_minibatches: At least 1.
        *seed: Of the step and of the pass over it.

    Example:
        >>> whole = minibatch_of_prompts(0, 6, 2, "seed")
        >>> torch.equal(whole[3:], minibatch_of_prompts(3, 3, 2, "seed"))
        True
    """
    runs = range(first // num_minibatches, (first + num_prompts - 1) // num_minibatches + 1)
    generators = (torch.Generator().manual_seed(derive_seed(*seed, run)) for run in runs)
    dealt = torch.cat([torch.randperm(num_minibatches, generator=generator) for generator in generators])
    return dealt[first - runs.start * num_minibatches :][:num_prompts]
