"""What a Trainer has to be, and what it is given, before the policy loads."""

from __future__ import annotations

import lightning as L
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from grpo_lightning.distributed.checkpoint_io import AtomicCheckpointIO
from grpo_lightning.distributed.strategies import check_strategy
from grpo_lightning.policy.policy import Policy
from grpo_lightning.policy.strategy_check import check_policy
from grpo_lightning.training.optimization import check_trainer


def prepare_trainer(module: L.LightningModule, policy: Policy) -> None:
    """Refuses what the Trainer cannot do with this policy; makes it write and read checkpoint files whole.

    Raises:
        ValueError: In the words of the config.
    """
    if getattr(module, "_compiler_ctx", None) is not None:
        raise ValueError(
            "torch.compile(module) compiles Lightning's hooks, which sample and score besides computing a loss. Give the "
            "Trainer the module itself, with model.torch_compile=true, which compiles the policy's layers."
        )
    check_trainer(module.trainer)
    check_strategy(module.trainer.strategy)
    check_policy(policy, module.trainer.strategy)
    use_whole_files(module.trainer.strategy)


def use_whole_files(strategy: Strategy) -> None:
    """AtomicCheckpointIO in the place of Lightning's default; a plugin that the Trainer was given stays.

    Sharded strategies write directories, and check those themselves.
    """
    writes_files = isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
    if writes_files and type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = AtomicCheckpointIO()
