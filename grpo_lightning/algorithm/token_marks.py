"""Tokens that a loss treats differently, chosen among all of a step's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from grpo_lightning.algorithm.experience import Experience
from grpo_lightning.algorithm.losses import PolicyLoss
from grpo_lightning.numerics.device_copy import to_device
from grpo_lightning.seeds import derive_seed

Values = tuple[Tensor, Tensor]


def mark_tokens(
    experience: Experience, loss: PolicyLoss, of_all: Callable[[Values], list[Values]], own: int, *seed: int | str
) -> Experience:
    """The experience with the tokens that the loss marks; itself for a loss that marks none.

    Args:
        experience: With advantages, and old logprobs.
        loss: Its ``mark`` sees the advantages and old logprobs of every token that counts, of all ranks.
        of_all: Gathers a value of every rank's.
        own: Which of them is this rank's.
        *seed: Of random choices, the same on every rank.
    """
    if not loss.marks_tokens:
        return experience
    assert experience.old_logprobs is not None  # Objective.needs_old_logprobs_pass
    mask = experience.mask
    parts = of_all((experience.token_advantages[mask], experience.old_logprobs.cpu()[mask]))
    advantages, logprobs = (torch.cat(values) for values in zip(*parts, strict=True))
    marked = torch.zeros(0, dtype=torch.bool)
    if len(advantages):
        marked = loss.mark(advantages, logprobs, torch.Generator().manual_seed(derive_seed(*seed, "mark")))
    mine = marked.split([len(part) for part, _ in parts])[own]
    is_marked = torch.zeros_like(mask).masked_scatter(mask, mine)
    return replace(experience, is_marked=to_device(is_marked, experience.sampling_logprobs.device))
