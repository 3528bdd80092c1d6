"""What the measurement of memory rehearses of GRPO: a step from its rewards on, and sampling at rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_lightning.algorithm.experience import Experience, MicroBatch
from grpo_lightning.metrics.step_report import StepReport
from grpo_lightning.rollouts.source import RolloutSource
from grpo_lightning.training.optimization import Optimization
from grpo_lightning.training.teachers import Teachers
from grpo_lightning.types import Rollouts


@dataclass(frozen=True)
class RehearsedStep:
    """Takes rollouts from their rewards on up to the gradient, by the methods of the module, which a subclass may have changed."""

    make_experience: Callable[[Rollouts], Experience]
    policy_loss: Callable[[Experience, MicroBatch, StepReport], Tensor]
    optimization: Optimization
    teachers: Teachers | None

    def __call__(self, rollouts: Rollouts, micro_batch: MicroBatch) -> None:
        """One micro-batch of them, as if every completion were better than its group."""
        experience = self.make_experience(rollouts).with_advantages(torch.ones(rollouts.num_completions))
        if self.teachers is not None:
            experience = self.teachers.rehearsed(experience)
        loss = self.policy_loss(experience, micro_batch, StepReport())
        self.optimization.accumulate_gradient(loss, micro_batch)


def wake(source: RolloutSource) -> None:
    """Has the generator and the rewards take all the memory that they take on this device."""
    source.prepare()
    for reward in source.reward_runner.rewards:
        getattr(reward, "processing_class", None)  # a reward model in this process is loaded for it
