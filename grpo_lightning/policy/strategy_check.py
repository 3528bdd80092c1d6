"""Strategies that a policy cannot be trained with, told before its weights load."""

from __future__ import annotations

from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from grpo_lightning.distributed.strategies import FSDP2Strategy
from grpo_lightning.distributed.tensor_parallel import split_plan
from grpo_lightning.policy.policy import Policy
from grpo_lightning.scoring.fast_kernels import liger_obstacle


def check_policy(policy: Policy, strategy: Strategy) -> None:
    """Refuses what the strategy does not go with.

    Raises:
        ValueError: In the words of the config.
    """
    settings = policy.settings
    policy.check_layers()
    if settings.use_liger_kernel and (obstacle := liger_obstacle(strategy.root_device)) is not None:
        raise ValueError(f"model.use_liger_kernel=true: {obstacle}.")
    if isinstance(strategy, ModelParallelStrategy) and settings.is_quantized:
        raise ValueError(
            "model.finetuning_type=qlora: 4-bit weights cannot be sharded. Use trainer.strategy=ddp, or lora."
        )
    if isinstance(strategy, FSDP2Strategy) and strategy.tensor_parallel_size > 1:
        _check_tensor_parallel(policy, strategy.tensor_parallel_size)


def _check_tensor_parallel(policy: Policy, size: int) -> None:
    """Refuses what splitting matrices over ranks does not go with."""
    settings = policy.settings
    split_plan(policy.config, size)
    for setting, is_on in (
        (f"model.finetuning_type={settings.finetuning_type}", settings.has_adapters),
        ("model.torch_compile=true", settings.torch_compile),
    ):
        if is_on:
            raise ValueError(
                f"{setting} does not go with trainer.strategy.init_args.tensor_parallel_size={size}. Use "
                "tensor_parallel_size=1, which shards the weights all the same."
            )
