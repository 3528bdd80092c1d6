"""What the start of training has to know of the training that it makes room for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from grpo_lightning.algorithm.experience import MicroBatch
from grpo_lightning.policy.policy import Policy
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.types import OptimizerFactory, PromptImages, Rollouts


class HasBudget(Protocol):
    """Passes over a policy, with the number of tokens that one may have."""

    max_tokens: int
    is_fixed: bool
    """Whether the config says how many; otherwise the start of training does, or the run that is gone on from."""
    saved_budget: int | None
    """Of that run."""

    @property
    def scorer(self) -> Scorer:
        """Of the policy."""

    def forgo_logits(self) -> bool:
        """Keeps no logits from now on; whether that may save memory."""


@dataclass(frozen=True)
class Workload:
    """Training as it is about to start: weights, optimizer and reference are in memory, and no gradient yet."""

    policy: Policy
    passes: HasBudget
    optimizer: Optimizer
    optimizer_factory: OptimizerFactory
    device: torch.device
    run_pass: Callable[[Rollouts, MicroBatch], None]
    """All that a step does with rollouts from their rewards on, up to the gradient."""
    precision: Callable[[], AbstractContextManager[None]]
    """Of the Trainer, around a step."""
    prompts_in_a_step: int
    """Groups that one step of this rank may train on; more than any has where the data does not tell."""
    longest_prompt: int | None
    """Tokens; None where the data does not tell."""
    max_completion_length: int
    wake: Callable[[], None] = lambda: None
    """Takes all the memory that sampling takes, and nothing where nothing is sampled."""
    length_setting: tuple[str, int] | None = None
    """The setting of ``model.*`` that bounds it, with its value, where that is not max_completion_length itself."""
    group_size: int = 1
    world_size: int = 1
    replica_size: int = 1
    is_joint: bool = False
    """Whether ranks wait for each other inside a pass, where one that runs out of memory cannot tell the others."""
    generator: Any = None
    """What samples, if anything does."""
    shown: tuple[list[int], PromptImages] | None = None
    """The prompt whose images take most of it, ids and images; None where no prompt shows any."""
    copies_reference: bool = False
    """Whether a copy of the policy is on its device, to compare with."""
