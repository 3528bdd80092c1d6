"""What a step leaves behind for callbacks to look at."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from grpo_lightning.rewards import RewardTable
from grpo_lightning.types import PromptBatch, Rollouts


@dataclass(frozen=True)
class StepRecord:
    """The prompts, completions, rewards and advantages of this rank's last step; replaced by the next one.

    Nothing in training reads it: callbacks do, in ``on_train_batch_end``.
    """

    batch: PromptBatch
    """B prompts."""
    rollouts: Rollouts
    """N completions of them."""
    rewards: RewardTable
    """(N, R) scores of this rank."""
    advantages: Tensor
    """(N,) float32."""
