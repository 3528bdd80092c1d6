"""What a Trainer has to be, and what it is given, before the policy loads."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    ParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)

from grpo_lightning.distributed.checkpoint_io import whole_files
from grpo_lightning.distributed.strategies import FSDP2Strategy, check_strategy
from grpo_lightning.distributed.tensor_parallel import split_plan
from grpo_lightning.policy.dtypes import known_precision
from grpo_lightning.policy.policy import Policy
from grpo_lightning.scoring.fast_kernels import liger_obstacle
from grpo_lightning.types import PromptBatch

AVERAGES = (
    "copies the whole module, with its generator and the workers of its rewards, which cannot be copied, and would hand the "
    "generator weights that no step has made. Leave it out; several exports can be averaged after the run."
)
IN_VAIN: dict[type[Callback], str] = {
    GradientAccumulationScheduler: (
        "has no effect: one batch is one step whatever its size. Set data.batch_size to the prompts of a step; "
        "model.max_tokens_per_microbatch bounds the memory."
    ),
    StochasticWeightAveraging: AVERAGES,
    WeightAveraging: AVERAGES,
    BatchSizeFinder: (
        "looks for the data.batch_size that fills the memory, which here is how many prompts a step learns from. Choose it "
        "yourself: model.max_tokens_per_microbatch=auto (the default) measures what fits into memory."
    ),
    LearningRateFinder: (
        "raises the rate inside one run and reads the loss that Lightning's own optimization returns, which is not used here. "
        "Compare short runs with different model.optimizer.init_args.lr."
    ),
    ModelPruning: (
        "gives the weights other names, under which neither a generator nor an export knows them. Leave it out; prune what "
        "the run exports."
    ),
    SpikeDetection: (
        "reads the loss that Lightning's own optimization returns, which is not used here, and what is near 0 by construction "
        "tells of no spike. Watch grad_norm and kl; model.max_grad_norm bounds a step."
    ),
}
"""Callbacks of Lightning that cannot work here, and what to do in their place."""


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
    check_callbacks(module.trainer)
    check_strategy(module.trainer.strategy)
    check_policy(policy, module.trainer.strategy)
    use_whole_files(module.trainer.strategy)


def check_trainer(trainer: L.Trainer) -> None:
    """Refuses Trainer settings without effect, before Lightning refuses them in its own words.

    Raises:
        ValueError: Naming what to set instead.
    """
    if trainer.gradient_clip_val:
        raise ValueError("trainer.gradient_clip_val is not used by GRPO. Set model.max_grad_norm instead.")
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(
            "trainer.accumulate_grad_batches is not used: one batch is one GRPO step whatever its size. "
            "Set data.batch_size to the prompts of a step; model.max_tokens_per_microbatch bounds the memory."
        )
    if str(trainer.precision) == "16-mixed":
        raise ValueError("trainer.precision=16-mixed needs loss scaling. Use bf16-mixed, bf16-true or 32-true.")
    known_precision(trainer.precision)


def use_whole_files(strategy: Strategy) -> None:
    """AtomicCheckpointIO in the place of Lightning's default; a plugin that the Trainer was given goes on writing.

    FSDP2 writes the whole in one file with ``save_distributed_checkpoint: false``; directories it writes and checks itself.
    """
    if isinstance(strategy, SingleDeviceStrategy | DDPStrategy | FSDP2Strategy):
        strategy.checkpoint_io = whole_files(strategy.checkpoint_io)


def check_callbacks(trainer: L.Trainer) -> None:
    """Refuses callbacks that Lightning's Trainer takes and that fail, or mislead, in the middle of a run.

    Raises:
        ValueError: Naming the callback and what to do instead.
    """
    for callback in getattr(trainer, "callbacks", ()):
        for kind, reason in IN_VAIN.items():
            if isinstance(callback, kind):
                raise ValueError(f"trainer.callbacks: {type(callback).__name__} {reason}")


def check_batch(batch: Any) -> None:
    """Refuses batches of a loader that the Trainer was given in the place of a data module.

    Raises:
        TypeError: Saying what to give.
    """
    if not isinstance(batch, PromptBatch):
        raise TypeError(
            f"The Trainer's loader gives batches of type {type(batch).__name__}, not prompts with their tokens. Give it a data "
            "module: trainer.fit(module, datamodule=GRPODataModule(dataset=rows, batch_size=8)), where rows are a list of "
            "dictionaries, a datasets.Dataset or a file; of the stages sft, dpo and rm the data module of that stage."
        )


def check_policy(policy: Policy, strategy: Strategy) -> None:
    """Refuses what the strategy does not go with.

    Raises:
        ValueError: In the words of the config.
    """
    settings = policy.settings
    policy.check_layers()
    if settings.use_liger_kernel and (obstacle := liger_obstacle(strategy.root_device)) is not None:
        raise ValueError(f"model.use_liger_kernel=true: {obstacle}.")
    if settings.cuda_graphs:
        _check_graphs(strategy)
    if isinstance(strategy, ModelParallelStrategy) and settings.is_quantized:
        raise ValueError(
            "model.finetuning_type=qlora: 4-bit weights cannot be sharded. Use trainer.strategy=ddp, or lora."
        )
    if isinstance(strategy, FSDP2Strategy) and strategy.tensor_parallel_size > 1:
        _check_tensor_parallel(policy, strategy.tensor_parallel_size)


def _check_graphs(strategy: Strategy) -> None:
    """Refuses graphs of passes where there is no GPU, or more than one."""
    if strategy.root_device.type != "cuda":
        raise ValueError(
            f"model.cuda_graphs=true: CUDA graphs run on a GPU, and training runs on {strategy.root_device.type}. Leave the "
            "setting out."
        )
    if isinstance(strategy, ParallelStrategy):
        raise ValueError(
            f"model.cuda_graphs=true is for one GPU (trainer.devices=1, trainer.strategy=auto): {type(strategy).__name__} "
            "exchanges gradients while a backward pass runs. Leave it out, or use model.torch_compile=true."
        )


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
