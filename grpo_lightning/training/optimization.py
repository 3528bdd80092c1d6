"""How gradients are added up over passes and ranks, and become a step of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from grpo_lightning.algorithm.experience import MicroBatch
from grpo_lightning.distributed.sharding import by_mesh, clip_gradients
from grpo_lightning.distributed.strategies import FSDP2Strategy
from grpo_lightning.distributed.tensor_parallel import settle_gradients
from grpo_lightning.errors import ExplainedError
from grpo_lightning.numerics.output_head import decoder_layers
from grpo_lightning.policy.low_precision_updates import check_finite_steps, check_steps_land
from grpo_lightning.policy.policy import Policy
from grpo_lightning.seeds import forked_seed
from grpo_lightning.training.fused_optimizer import settle_kernels
from grpo_lightning.training.host_watch import HostWatch, notice


class ScheduleError(ExplainedError, ValueError):
    """A schedule that cannot follow a run, or not with what is given."""


MOST_SKIPPED = 100
"""Optimizer steps in a row that may be dropped for a gradient that is not finite. ``Alarms`` ends such a run earlier."""

ADAMW = {"lr": 1e-6, "weight_decay": 0.0}
"""Of the default optimizer."""


def default_optimizer(params: Any) -> torch.optim.Optimizer:
    """AdamW, as TRL has it."""
    return torch.optim.AdamW(params, **ADAMW)  # type: ignore[arg-type]  # names of its arguments


@dataclass(frozen=True, kw_only=True)
class OptimizationSettings:
    """How the weights move.

    Args:
        optimizer: Class path and arguments of the optimizer. On a GPU torch's Adam and AdamW step by fused kernels, unless
            fused or foreach is given. Weights in half precision (bf16-true) need one that adds up what
            rounding takes from its steps, such as optimi.AdamW.
        lr_scheduler: Class path and arguments of a scheduler that is stepped once per optimizer step.
        max_grad_norm: Gradients are scaled down to this global 2-norm; 0 leaves them alone.
        allow_rounded_steps: Train weights in half precision also with an optimizer and a learning rate whose steps round
            away for more than nine tenths of them. Such a run hardly learns, and is refused otherwise.

    Raises:
        ValueError: For a negative norm, no optimizer, or an optimizer or schedule that is made already.
    """

    optimizer: OptimizerCallable = default_optimizer
    lr_scheduler: LRSchedulerCallable | None = None
    max_grad_norm: float = 1.0
    allow_rounded_steps: bool = False

    def __post_init__(self) -> None:
        if self.optimizer is None:
            raise ValueError("model.optimizer=None: there is no training without one. Leave it out for AdamW.")
        for name, makes in (("optimizer", "params"), ("lr_scheduler", "optimizer")):
            given = getattr(self, name)
            if given is not None and not callable(given):
                raise ValueError(
                    f"model.{name} is a {type(given).__name__} that was made before there are weights. Give what makes it: "
                    f"{name}=lambda {makes}: {type(given).__name__}({makes}, ...)."
                )
        if not 0 <= self.max_grad_norm < math.inf:
            raise ValueError(
                f"model.max_grad_norm={self.max_grad_norm} is no norm of a gradient. Use 0 for no clipping."
            )


class Optimization:
    """The optimizer of a policy; manual optimization, since a step has any number of passes.

    Args:
        settings: See there.
        policy: Its version is raised by every step of the optimizer, whoever asks for it.
        lightning: Does the backward passes, and holds the optimizer once it is made.
    """

    def __init__(self, settings: OptimizationSettings, policy: Policy, lightning: L.LightningModule) -> None:
        self.settings, self.policy, self.lightning = settings, policy, lightning
        self.skipped_in_a_row = 0
        self._adds_in_place = False
        self._host = HostWatch(self._say_what_bounds_passes)

    def make_optimizer(self, run_steps: Callable[[], int | None] = lambda: None) -> Any:
        """The optimizer over trainable weights and, where set, its scheduler; for ``configure_optimizers``.

        Args:
            run_steps: Gives the optimizer steps of the run, None where only the clock ends it.
        """
        settings = self.settings
        groups = by_mesh(p for p in self.policy.parameters() if p.requires_grad)
        optimizer = self.new_optimizer(groups[0] if len(groups) == 1 else [{"params": group} for group in groups])
        optimizer.register_step_post_hook(lambda *_: self.policy.changed())
        scheduler = (
            None if settings.lr_scheduler is None else make_scheduler(settings.lr_scheduler, optimizer, run_steps)
        )
        check_finite_steps(optimizer, self.new_optimizer)
        if not settings.allow_rounded_steps:
            check_steps_land(optimizer, self.new_optimizer)
        return optimizer if scheduler is None else {"optimizer": optimizer, "lr_scheduler": scheduler}

    def new_optimizer(self, params: Any) -> torch.optim.Optimizer:
        """One of the run's kind over weights, or groups of them, that steps by the kernels of the run."""
        return settle_kernels(self.settings.optimizer(params))

    def accumulate_gradient(self, loss: Tensor, micro_batch: MicroBatch) -> None:
        """Adds the gradient of a micro-batch; ranks exchange gradients in the last one of an optimizer step only."""
        strategy = self.lightning.trainer.strategy
        ranks = strategy if isinstance(strategy, ParallelStrategy) else None
        self._adds_in_place = ranks is None or not micro_batch.is_last
        self._host.begin()
        try:
            with nullcontext() if ranks is None or micro_batch.is_last else ranks.block_backward_sync():
                self.lightning.manual_backward(loss)
        finally:
            self._adds_in_place = False

    def backward_pass(self) -> AbstractContextManager[None]:
        """Around autograd's run over a micro-batch's loss alone: hooks of callbacks may run others before it."""
        return self.policy.weight_gradients.in_place() if self._adds_in_place else nullcontext()

    def step(self) -> Tensor:
        """One optimizer step on the accumulated gradients, clipped; a gradient with NaN or inf is dropped instead.

        Returns:
            The 2-norm of the gradient before clipping, a 0-dim tensor on the CPU: for it the host waits for all passes.
            Not finite where the step was skipped.

        Raises:
            ExplainedError: After ``MOST_SKIPPED`` skipped steps in a row, on every rank: they do not count towards
                ``trainer.max_steps``, so that the run would never end.
        """
        optimizer = cast(LightningOptimizer, self.lightning.optimizers())
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in parameters:
            if parameter.grad is None:  # no completion had an advantage: momentum and decay act on a zero gradient
                parameter.grad = torch.zeros_like(parameter)
        strategy = self.lightning.trainer.strategy
        if isinstance(strategy, FSDP2Strategy) and strategy.tensor_parallel_size > 1:
            settle_gradients(self.policy.model, strategy.device_mesh)
        norm = clip_gradients(parameters, self.settings.max_grad_norm or float("inf")).detach()
        with self._host.waiting():
            norm = norm.cpu()
        if torch.isfinite(norm):
            self._move_weights(optimizer)
            torch.clear_autocast_cache()  # Lightning's autocast spans the step: later passes would see the old weights
            scheduler: Any = self.lightning.lr_schedulers()
            if scheduler is not None:
                scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        self._count_skipped(bool(torch.isfinite(norm)))
        return norm

    def _move_weights(self, optimizer: LightningOptimizer) -> None:
        """An optimizer that rounds at random (``bf16_stochastic_round`` of torchao's) draws the same on all ranks: replicas stay equal."""
        lightning = self.lightning
        with forked_seed(self.policy.seed, "optimizer", lightning.trainer.global_step, device=lightning.device):
            optimizer.step()

    def _say_what_bounds_passes(self, seconds: float, waited: float) -> None:
        """Once, on a GPU whose passes wait for the host, where something can be done about it."""
        settings, strategy = self.policy.settings, self.lightning.trainer.strategy
        if self.lightning.device.type != "cuda" or settings.cuda_graphs:
            return
        is_split = isinstance(strategy, FSDP2Strategy) and strategy.tensor_parallel_size > 1
        can_compile = not (settings.torch_compile or is_split) and bool(decoder_layers(self.policy.model))
        can_record = settings.gradient_checkpointing is False and not isinstance(strategy, ParallelStrategy)
        if can_record or can_compile:
            rank_zero_info(notice(seconds, waited, can_record, can_compile))

    def _count_skipped(self, is_finite: bool) -> None:
        self.skipped_in_a_row = 0 if is_finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= MOST_SKIPPED:
            raise ExplainedError(
                f"The last {MOST_SKIPPED} optimizer steps had a gradient with NaN or infinity and were skipped; skipped steps "
                "do not count towards trainer.max_steps, so the run would never end. Lower model.optimizer.lr, check "
                "trainer.precision, and check that rewards, margins and the logprobs of teachers are finite."
            )

    @property
    def learning_rate(self) -> float:
        """Of the next optimizer step, of the first group of weights."""
        return float(self.lightning.trainer.optimizers[0].param_groups[0]["lr"])

    def settle_buckets(self, idle_loss: Tensor) -> None:
        """Lets DDP settle its buckets: their layout rounds the sums over ranks, and a resumed run must not differ.

        Args:
            idle_loss: Of a pass that has no gradient.
        """
        self.lightning.manual_backward(idle_loss)
        self.lightning.zero_grad(set_to_none=True)

    @property
    def has_buckets(self) -> bool:
        """Whether DDP sums gradients."""
        return isinstance(self.lightning.trainer.strategy.model, DistributedDataParallel)


def make_scheduler(
    factory: LRSchedulerCallable, optimizer: torch.optim.Optimizer, run_steps: Callable[[], int | None]
) -> Any:
    """The schedule of an optimizer; functions of transformers get their ``num_training_steps`` from the run.

    Raises:
        ScheduleError: If the factory needs further arguments, or its schedule waits for a metric.

    Example:
        >>> from functools import partial
        >>> from transformers import get_linear_schedule_with_warmup
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = make_scheduler(partial(get_linear_schedule_with_warmup, num_warmup_steps=2), optimizer, lambda: 8)
        >>> [schedule.lr_lambdas[0](step) for step in (0, 2, 5, 8)]
        [0.0, 1.0, 0.5, 0.0]
    """
    parameters = signature(factory).parameters.values()
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    needed = [each.name for each in parameters if each.default is each.empty and each.kind not in several][1:]
    told = {name: run_steps() for name in needed if name == "num_training_steps"}
    needed = [name for name in needed if told.get(name) is None]
    if needed:
        raise ScheduleError(
            f"model.lr_scheduler needs {' and '.join(needed)} besides the optimizer"
            + (", and only the clock ends this run" if "num_training_steps" in needed else "")
            + ". Give it in init_args, from Python with functools.partial."
        )
    scheduler: Any = factory(optimizer, **told)
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise ScheduleError(
            "model.lr_scheduler=ReduceLROnPlateau waits for a validation metric, and a schedule is stepped once per optimizer "
            "step. Use grpo_lightning.modules.schedules.WarmupSchedule."
        )
    return scheduler
