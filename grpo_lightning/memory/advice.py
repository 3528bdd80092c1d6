"""What a user can change where a training pass does not fit into memory."""

from __future__ import annotations

from grpo_lightning.memory.workload import Workload


def ways_to_save(work: Workload, can_be_split: bool, fitting: int | None) -> list[str]:
    """Settings that would help and are not at their most frugal already, what costs least first.

    Args:
        work: Whose passes do not fit.
        can_be_split: Whether the micro-batch held more than one longest completion.
        fitting: A budget that should fit, if one is known.
    """
    ways, settings = [], work.policy.settings
    if can_be_split:
        ways.append(f"model.max_tokens_per_microbatch={'auto' if fitting is None else fitting}")
    if settings.gradient_checkpointing is False and not settings.torch_compile:
        ways.append("model.gradient_checkpointing=selective, or true, which saves more")
    elif settings.gradient_checkpointing is not True:
        ways.append("model.gradient_checkpointing=true")
    share = getattr(work.generator, "gpu_memory_utilization", None)
    if share is not None:
        ways.append(f"model.generator.init_args.gpu_memory_utilization below {share}")
        if not getattr(work.generator, "sleep_level", 0):
            ways.append("model.generator.init_args.enable_sleep_mode=true")
    if work.copies_reference:
        ways.append("model.ref_model_device=cpu")
    name, value = work.length_setting or ("max_completion_length", work.max_completion_length)
    ways.append(f"model.{name} below {value}")
    if not settings.has_adapters:
        ways.append("model.finetuning_type=lora")
    is_sharded = work.policy.is_sharded
    if work.world_size > 1 and not is_sharded:
        ways.append("trainer.strategy=fsdp2")
    if is_sharded and work.world_size > work.replica_size and not settings.has_adapters:
        ways.append(f"trainer.strategy.init_args.tensor_parallel_size={2 * work.replica_size} of FSDP2Strategy")
    return ways
