"""The training that GRPOModule is about to start, as the measurement of memory rehearses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from grpo_lightning.algorithm.experience import MicroBatch
from grpo_lightning.memory.workload import Workload
from grpo_lightning.metrics.step_report import StepReport
from grpo_lightning.policy.reference import FrozenReference
from grpo_lightning.types import Rollouts

if TYPE_CHECKING:
    from grpo_lightning.modules.grpo import GRPOModule


def grpo_workload(module: GRPOModule) -> Workload:
    """What a step of this module may need at most.

    Args:
        module: In a fit, with weights, reference and optimizer.
    """
    settings, source = module.settings, module.source
    reference, is_placed = module.experience_maker.reference, settings.ref_model_device is not None
    joint_threshold = module.trainer.world_size > 1 and module.objective.needs_entropy_threshold

    def run_pass(rollouts: Rollouts, micro_batch: MicroBatch) -> None:
        experience = module.experience(rollouts).with_advantages(torch.ones(rollouts.num_completions))
        if module.teachers is not None:
            experience = module.teachers.rehearsed(experience)
        loss = module.policy_loss(experience, micro_batch, StepReport())
        module.optimization.accumulate_gradient(loss, micro_batch)

    def wake() -> None:
        source.prepare()
        for reward in source.reward_runner.rewards:
            getattr(reward, "processing_class", None)  # a reward model in this process is loaded for it

    return module.base_workload(
        run_pass=run_pass,
        wake=wake,
        prompts_in_a_step=module.prompts_in_a_step() + settings.dynamic_sampling.replay_groups,
        max_completion_length=module.sampling.max_completion_length,
        group_size=module.sampling.num_generations,
        is_joint=module.policy.is_sharded or joint_threshold,
        generator=source.generator,
        copies_reference=isinstance(reference, FrozenReference) and not is_placed,
    )
