"""The plan of a run, printed before its first step: prompts, completions, tokens, steps, memory."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from grpo_lightning.callbacks.samples import show
from grpo_lightning.callbacks.step_bar import last_step


def memory(size: int) -> str:
    """Bytes in the unit that leaves digits to read.

    Example:
        >>> memory(1_733_120), memory(3 * 2**30)
        ('1.7 MiB', '3.00 GiB')
    """
    return f"{size / 2**30:.2f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"


def counted(number: int, noun: str) -> str:
    """``1 rank``, ``4,096 prompts``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def run_plan(trainer: Trainer, module: Any) -> list[str]:
    """Lines that say what the run will do, in the units users count in."""
    ranks, sampling = trainer.world_size, module.sampling
    prompts = trainer.datamodule.batch_size * ranks  # type: ignore[attr-defined]
    completions = prompts * sampling.num_generations
    tokens = completions * sampling.max_completion_length
    # None: a stream does not say how many there are.
    per_epoch = int(trainer.num_training_batches) if math.isfinite(trainer.num_training_batches) else None
    steps = last_step(trainer, module.num_updates, module.steps_done)
    trained = sum(p.numel() for p in module.policy.parameters() if p.requires_grad)
    weights = sum(p.numel() * p.element_size() for p in module.policy.parameters())
    states = sum(3 * p.numel() * p.element_size() for p in module.policy.parameters() if p.requires_grad)
    epoch = "prompts come from a stream"
    if per_epoch is not None:
        epoch = f"an epoch is {counted(per_epoch, 'step')} over {counted(per_epoch * prompts, 'prompt')}"
    per_step = f"{prompts} prompts x {sampling.num_generations} = {completions} completions, up to {tokens:,} tokens"
    measured = getattr(module, "memory_plan", None)
    return [
        f"Each GRPO step: {per_step}; {counted(module.num_updates, 'optimizer step')}, micro-batches of up to "
        f"{module.passes.max_tokens:,} tokens; {counted(ranks, 'rank')}.",
        f"{steps if steps is not None else 'unlimited'} GRPO steps; {epoch}.",
        f"{trained:,} trained parameters; weights {memory(weights)}, gradients and two optimizer moments up to "
        f"{memory(states)} a rank, before sharding; activations come on top.",
        *([] if measured is None else [str(measured)]),
    ]


class RunPlan(Callback):
    """Prints the plan when training starts, with what its passes will take of a GPU's memory."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Has memory measured, before callbacks that take their time; prints on the first rank."""
        module: Any = pl_module
        module.settle_memory()
        if trainer.is_global_zero:
            show(*run_plan(trainer, pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prints, after the first step, where the time to it went."""
        times: Any = pl_module.start_times
        if times.is_complete:
            return
        times.mark("first step")
        times.is_complete = True
        if trainer.is_global_zero:
            show(str(times))
