"""What the measurement of memory is told of a module whose training is about to start."""

from __future__ import annotations

from typing import Any

from grpo_lightning.memory.workload import Workload
from grpo_lightning.modules.policy_module import PolicyModule


def workload_of(module: PolicyModule, **training: Any) -> Workload:
    """What every workload has, with what is said of the training itself.

    Args:
        module: With its Trainer.
        **training: Further fields of ``Workload``, or in place of the usual ones.
    """
    data, trainer = module.datamodule, module.trainer
    longest = getattr(getattr(data, "train_prompts", None), "lengths", None)
    usual: dict[str, Any] = {"prompts_in_a_step": module.prompts_in_a_step(), "is_joint": module.policy.is_sharded}
    return Workload(
        policy=module.policy,
        passes=module.passes,
        optimizer=trainer.optimizers[0],
        optimizer_factory=module.optimization.new_optimizer,
        device=module.device,
        precision=trainer.strategy.precision_plugin.train_step_context,
        longest_prompt=max(longest) if longest else getattr(data, "max_prompt_length", None),
        world_size=trainer.world_size,
        replica_size=module.replica.size,
        **(usual | training),
    )
