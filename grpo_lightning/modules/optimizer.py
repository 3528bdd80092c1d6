"""OptimizerModule: how gradients are added up over passes and ranks, and become a step of the weights."""

from typing import Any, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from grpo_lightning.algorithm.experience import MicroBatch
from grpo_lightning.distributed.sharding import by_mesh, clip_gradients
from grpo_lightning.distributed.strategies import FSDP2Strategy
from grpo_lightning.distributed.tensor_parallel import settle_gradients
from grpo_lightning.modules.policy import PolicyModule
from grpo_lightning.modules.schedules import RunSchedule, run_steps
from grpo_lightning.policy.low_precision_updates import check_steps_land
from grpo_lightning.rollouts.replicas import Replica, replica_of


class OptimizerModule(PolicyModule):
    """A policy with an optimizer; manual optimization, since a step has any number of passes.

    Args:
        optimizer: Class path and arguments of the optimizer. Weights in half precision (bf16-true) need one that adds up what
            rounding takes from its steps, such as optimi.AdamW.
        lr_scheduler: Class path and arguments of a scheduler that is stepped once per optimizer step.
        max_grad_norm: Gradients are scaled down to this global 2-norm; 0 leaves them alone.
        allow_rounded_steps: Train weights in half precision also with an optimizer and a learning rate whose steps round
            away for more than nine tenths of them. Such a run hardly learns, and is refused otherwise.
        **policy: Arguments of PolicyModule.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0),
        lr_scheduler: LRSchedulerCallable | None = None,
        max_grad_norm: float = 1.0,
        allow_rounded_steps: bool = False,
        **policy: Any,
    ) -> None:
        super().__init__(**policy)
        self.automatic_optimization = False
        self.optimizer_factory = optimizer
        self.lr_scheduler_factory = lr_scheduler
        if max_grad_norm < 0:
            raise ValueError(f"model.max_grad_norm={max_grad_norm} is negative. Use 0 for no clipping.")
        self.max_grad_norm = max_grad_norm
        self.allow_rounded_steps = allow_rounded_steps

    def configure_callbacks(self) -> list[Callback]:
        """Refuses Trainer settings without effect; the only hook before Lightning refuses them in its own words."""
        trainer = self.trainer
        if trainer.gradient_clip_val:
            raise ValueError("trainer.gradient_clip_val is not used by GRPO. Set model.max_grad_norm instead.")
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "trainer.accumulate_grad_batches is not used: one batch is one GRPO step whatever its size. "
                "Set data.batch_size to the prompts of a step; model.max_tokens_per_microbatch bounds the memory."
            )
        if str(trainer.precision) == "16-mixed":
            raise ValueError("trainer.precision=16-mixed needs loss scaling. Use bf16-mixed, bf16-true or 32-true.")
        return super().configure_callbacks()

    @property
    def replica(self) -> Replica:
        """The ranks that this one runs training passes with."""
        return replica_of(self.trainer.strategy, self.global_rank, self.trainer.world_size)

    def configure_optimizers(self) -> Any:
        """The optimizer over trainable weights and, where set, its scheduler."""
        groups = by_mesh(p for p in self.parameters() if p.requires_grad)
        optimizer = self.optimizer_factory(groups[0] if len(groups) == 1 else [{"params": group} for group in groups])
        scheduler = None if self.lr_scheduler_factory is None else self.lr_scheduler_factory(optimizer)
        if not self.allow_rounded_steps:
            check_steps_land(optimizer, self.optimizer_factory)
        if isinstance(scheduler, RunSchedule):
            scheduler.set_total_steps(run_steps(self.trainer, getattr(self, "num_updates", 1)))
        return optimizer if scheduler is None else {"optimizer": optimizer, "lr_scheduler": scheduler}

    def accumulate_gradient(self, loss: Tensor, micro_batch: MicroBatch) -> None:
        """Adds the gradient of a micro-batch; ranks exchange gradients in the last one of an optimizer step only."""
        strategy = self.trainer.strategy
        if micro_batch.is_last or not isinstance(strategy, ParallelStrategy):
            self.manual_backward(loss)
        else:
            with strategy.block_backward_sync():
                self.manual_backward(loss)

    def step_optimizer(self) -> Tensor:
        """One optimizer step on the accumulated gradients, clipped; a gradient with NaN or inf is dropped instead.

        Returns:
            The 2-norm of the gradient before clipping, a 0-dim tensor on the CPU: for it the host waits for all passes.
            Not finite where the step was skipped.
        """
        optimizer = cast(LightningOptimizer, self.optimizers())
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in parameters:
            if parameter.grad is None:  # no completion had an advantage: momentum and decay act on a zero gradient
                parameter.grad = torch.zeros_like(parameter)
        if self.replica.size > 1:
            assert self.policy is not None
            settle_gradients(self.policy, cast(FSDP2Strategy, self.trainer.strategy).device_mesh)
        norm = clip_gradients(parameters, self.max_grad_norm or float("inf")).detach().cpu()
        if torch.isfinite(norm):
            optimizer.step()
            torch.clear_autocast_cache()  # Lightning's autocast spans the step: later passes would see the old weights
            scheduler = cast(LRScheduler | None, self.lr_schedulers())
            if scheduler is not None:
                scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        return norm
