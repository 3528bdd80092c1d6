"""What a user can change where a training pass does not fit into memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo_lightning.policy.reference import FrozenReference

if TYPE_CHECKING:
    from grpo_lightning.modules.updates import UpdateModule


def ways_to_save(module: UpdateModule, can_be_split: bool, fitting: int | None) -> list[str]:
    """Settings that would help and are not at their most frugal already, what costs least first.

    Args:
        module: Whose passes do not fit.
        can_be_split: Whether the micro-batch held more than one longest completion.
        fitting: A budget that should fit, if one is known.
    """
    ways = []
    if can_be_split:
        ways.append(f"model.max_tokens_per_microbatch={'auto' if fitting is None else fitting}")
    if module.gradient_checkpointing is False and not module.torch_compile:
        ways.append("model.gradient_checkpointing=selective, or true, which saves more")
    elif module.gradient_checkpointing is not True:
        ways.append("model.gradient_checkpointing=true")
    share = getattr(module.generator, "gpu_memory_utilization", None)
    if share is not None:
        ways.append(f"model.generator.init_args.gpu_memory_utilization below {share}")
        if not getattr(module.generator, "sleep_level", 0):
            ways.append("model.generator.init_args.enable_sleep_mode=true")
    if isinstance(module.reference, FrozenReference) and module.ref_model_device is None:
        ways.append("model.ref_model_device=cpu")
    ways.append(f"model.max_completion_length below {module.sampling.max_completion_length}")
    if not module.finetuning.has_adapters:
        ways.append("model.finetuning_type=lora")
    if module.trainer.world_size > 1 and not module.is_sharded:
        ways.append("trainer.strategy=fsdp2")
    if module.is_sharded and module.trainer.world_size > module.replica.size and not module.finetuning.has_adapters:
        ways.append(f"trainer.strategy.init_args.tensor_parallel_size={2 * module.replica.size} of FSDP2Strategy")
    return ways
