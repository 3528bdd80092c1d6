"""What the measurement of memory rehearses of GRPO: a step from its rewards on, and sampling at rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_lightning.algorithm.experience import Experience, MicroBatch
from grpo_lightning.metrics.step_report import StepReport
from grpo_lightning.policy.policy import Policy
from grpo_lightning.rollouts.source import RolloutSource
from grpo_lightning.training.distillation.teachers import Teachers
from grpo_lightning.training.optimization import Optimization
from grpo_lightning.types import PromptImages, Rollouts
from grpo_lightning.vision.probe import image_prompts


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


def most_shown(datamodule: Any, policy: Policy) -> tuple[list[int], PromptImages] | None:
    """The prompt whose images take the place of most tokens, as its batch will have it: ids and images.

    A small made-up one where the data does not tell, as of a stream; None where no prompt shows an image.

    Args:
        datamodule: Of the run.
        policy: Whose processor reads images, if it sees any.
    """
    if policy.image_processing is None:
        return None
    prompts = getattr(datamodule, "train_prompts", None)
    counts = getattr(prompts, "image_tokens", None)
    if prompts is None or counts is None:
        return image_prompts(policy.image_processing)[0]
    most = max(counts)
    batch = prompts.batch([counts.index(most)])
    return (batch.prompt_ids[0], batch.images[0]) if most else None


def wake(source: RolloutSource) -> None:
    """Has the generator and the rewards take all the memory that they take on this device."""
    source.prepare()
    for reward in source.reward_runner.rewards:
        getattr(reward, "processing_class", None)  # a reward model in this process is loaded for it
