"""What every module that trains a policy does at Lightning's hooks."""

from __future__ import annotations

import inspect
import shlex
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import lightning as L
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from grpo_lightning.callbacks.monitors import MonitorCheck
from grpo_lightning.distributed.checkpoint_check import STAGE, check_parts, check_stage, read_checkpoint
from grpo_lightning.distributed.due_checkpoints import DueCheckpoints
from grpo_lightning.distributed.evaluation_clock import EvaluationClock
from grpo_lightning.distributed.last_checkpoint import LastCheckpoint
from grpo_lightning.distributed.rank_watch import RankWatch
from grpo_lightning.distributed.stop_signals import StopSignals
from grpo_lightning.distributed.strategies import FSDP2Strategy, check_not_spawned
from grpo_lightning.memory.budget import MemoryPlan
from grpo_lightning.memory.gauge import MemoryGauge, gauge_of
from grpo_lightning.memory.rehearsal import rehearse
from grpo_lightning.memory.workload import Workload
from grpo_lightning.metrics.held_out import HeldOutMeans
from grpo_lightning.metrics.start_times import StartTimes
from grpo_lightning.metrics.utilization import DeviceUtilization, reader_of
from grpo_lightning.modules.checks.trainer import check_batch, prepare_trainer
from grpo_lightning.modules.former_settings import still_used
from grpo_lightning.modules.lone_evaluation import LoneEvaluation
from grpo_lightning.modules.returned_weights import ReturnedWeights, mark_returned
from grpo_lightning.modules.schedules import RunSchedule, run_steps
from grpo_lightning.modules.wrong_advice import NoWrongAdvice, settle_results
from grpo_lightning.policy.policy import Placement, Policy
from grpo_lightning.rollouts.replicas import Replica, replica_of
from grpo_lightning.settings.saved import check_loaded_settings, plain_settings
from grpo_lightning.training.optimization import Optimization
from grpo_lightning.training.passes import Passes
from grpo_lightning.training.steps import Steps

SETTINGS_KEY = "module_settings"
"""In a checkpoint. Not Lightning's own key: its command line would put these in the place of the config's."""
PRECISION = "precision"
"""In a checkpoint: ``trainer.precision``, which says what the weights are held in where no config is beside it."""


class HasState(Protocol):
    """A part that a checkpoint keeps something of."""

    def state_dict(self) -> dict[str, Any]:
        """What it is to go on from."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Goes on from there."""


class PolicyModule(L.LightningModule):
    """Loads a policy, makes room for its training, saves it: the same for every stage. Subclasses make the parts."""

    stage: ClassVar[str]
    """The command that trains it; only the same goes on from its checkpoints."""
    policy: Policy
    passes: Passes
    optimization: Optimization
    steps: Steps
    given_settings: dict[str, Any]
    """What the module was made with, by name; those that a subclass adds are among them."""

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Notes the settings before the first ``__init__`` may take some of them out."""
        module = super().__new__(cls)
        names = list(inspect.signature(cls.__init__).parameters)[1:]
        module.given_settings = dict(zip(names, args, strict=False)) | settings
        return module

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds trained weights only; on_load_checkpoint checks them itself
        self.num_updates = 1
        """Optimizer steps of a step."""
        self.memory_plan: MemoryPlan | None = None
        """What the start of training measured; None where memory cannot be measured."""
        self.rank_watch = RankWatch()
        self.last_checkpoint = LastCheckpoint(self.rank_watch)
        self.utilization = DeviceUtilization()
        self.start_times = StartTimes()
        self.start_times.mark("imports")
        self.held_out = HeldOutMeans()
        self.returned = ReturnedWeights()
        self.register_state_dict_post_hook(mark_returned)

    def __getstate__(self) -> dict[str, Any]:
        """As Lightning's; refused to a strategy that spawns processes, in place of what pickle says of the first lock."""
        check_not_spawned()
        return super().__getstate__()

    @property
    def steps_done(self) -> int:
        """Steps finished."""
        return self.steps.done

    @property
    def step_metrics(self) -> dict[str, float]:
        """What the last step logged, the same on every rank."""
        return self.steps.metrics

    @property
    def unmeasured_metrics(self) -> list[str]:
        """What the last step did not log for want of anything to measure."""
        return self.steps.unmeasured

    @property
    def replica(self) -> Replica:
        """The ranks that this one runs training passes with; known once the weights are there."""
        return self.passes.replica

    @property
    def datamodule(self) -> Any:
        """The Trainer's; None where it has plain dataloaders, and without a Trainer."""
        return None if self._trainer is None else getattr(self.trainer, "datamodule", None)

    def replacements(self) -> dict[str, str]:
        """Text to replace in what the data has written, old by new: model.replace_text, then data.replace_text."""
        of_data = getattr(self.datamodule, "replace_text", None)
        return {**(self.policy.settings.replace_text or {}), **(of_data or {})}

    def prompts_in_a_step(self) -> int:
        """Prompts that one step of this rank may train on; more than any has where the data does not tell."""
        return int(getattr(self.datamodule, "batch_size", 2**20))

    def configure_callbacks(self) -> list[Callback]:
        """Refuses what the Trainer cannot do with this policy, before it loads; the only hook that is early enough."""
        self.returned.check_start(self.trainer.state.fn)
        prepare_trainer(self, self.policy)
        signals, callbacks = StopSignals(self.last_checkpoint), self.trainer.callbacks  # type: ignore[attr-defined]
        checks = [] if any(isinstance(each, MonitorCheck) for each in callbacks) else [MonitorCheck(strict=False)]
        parts = [self.last_checkpoint, self.rank_watch, signals, NoWrongAdvice(), DueCheckpoints(), EvaluationClock()]
        return [*parts, LoneEvaluation(), *checks]

    def configure_model(self) -> None:
        """Loads the weights, once; without a Trainer onto the CPU, in float32."""
        if self._trainer is not None:
            strategy = self.trainer.strategy
            self.passes.replica = replica_of(strategy, self.global_rank, self.trainer.world_size)
        if not self.policy.is_loaded:
            self.start_times.mark("data")
            self.policy.load(None if self._trainer is None else self._placement())
            self.start_times.mark("weights")
        self.returned.put_into(self)  # also after an error of an earlier call

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; what comes before the policy has loaded waits for it, and is checked then (see ``ReturnedWeights``)."""
        now = self.returned.keep(self, state_dict, strict)
        return super().load_state_dict(now, strict and self.policy.is_loaded, assign)

    def _placement(self) -> Placement:
        strategy = self.trainer.strategy
        mesh = strategy.device_mesh if isinstance(strategy, ModelParallelStrategy) else None
        return Placement(strategy.root_device, str(self.trainer.precision), mesh)

    def configure_optimizers(self) -> Any:
        """The optimizer over trainable weights and, where set, its scheduler."""
        steps = partial(run_steps, self.trainer, self.num_updates)
        made = self.optimization.make_optimizer(steps)
        if isinstance(made, dict) and isinstance(made["lr_scheduler"], RunSchedule):
            made["lr_scheduler"].set_total_steps(steps())
        return made

    @abstractmethod
    def workload(self) -> Workload:
        """The training that is about to start, for the measurement of memory."""

    def memory_gauge(self) -> MemoryGauge | None:
        """What measures the device that the policy is trained on; None where memory cannot be measured."""
        return gauge_of(self.device)

    def settle_memory(self) -> None:
        """Makes sure, once and before the first step, that training passes fit into the GPU; auto chooses their size.

        Raises:
            MemoryError: If they do not fit, with what to change.
        """
        gauge = self.memory_gauge()
        if gauge is None or self.memory_plan is not None:
            return
        self.start_times.mark("setup")
        self.rank_watch.enter("the measurement of memory before the first step")
        self.memory_plan = rehearse(self.workload(), gauge)
        self.start_times.mark("rehearsal")

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """See LightningModule, which calls it once callbacks have seen the loss."""
        with self.optimization.backward_pass():
            super().backward(loss, *args, **kwargs)

    def on_train_start(self) -> None:
        """Settles memory, and DDP's buckets; from here on the device is watched."""
        self.settle_memory()
        self.utilization.start(reader_of(self.device))
        if self.optimization.has_buckets:
            self.optimization.settle_buckets(self.passes.scorer.idle() + self.passes.no_change())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Refuses what no data module of this package has made."""
        check_batch(batch)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As for training."""
        check_batch(batch)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def on_train_end(self) -> None:
        """The device is watched no longer."""
        self.utilization.stop()

    def on_validation_epoch_start(self) -> None:
        """Starts with empty means, one per held-out dataset; of tests too."""
        self.held_out.start()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Logs the means as ``val/...``."""
        self.log_means("val")

    def on_test_epoch_end(self) -> None:
        """Logs the means as ``test/...``."""
        self.log_means("test")

    def log_means(self, stage: str) -> dict[str, float]:
        """Logs the means of each held-out dataset as ``val/...``, or ``val/<dataset>/...`` where there are several."""
        loaders = self.trainer.test_dataloaders if stage == "test" else self.trainer.val_dataloaders
        logged = self.held_out.compute(stage, loaders)
        self.log_dict(logged)
        settle_results(self.trainer._results or {}, logged)
        return logged

    def use_of_export(self, path: Path) -> str:
        """What to do with the exported policy, in one or two sentences."""
        return (
            f"The trained policy is in {path}, as Hugging Face and vLLM load it. `python -m grpo_lightning chat {shlex.quote(str(path))}` "
            "talks to it."
        )

    def parts_with_state(self) -> dict[str, HasState]:
        """What a checkpoint keeps beside the weights, by name; without each of them nothing can go on from it."""
        return {"passes": self.passes}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what a resumed run or an export needs: trained weights, the step, the size of passes, and plain settings."""
        strategy = self.trainer.strategy
        # Lightning's own ModelParallelStrategy loads by the names of the whole module.
        keeps_all = isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, FSDP2Strategy)
        self.policy.add_to_checkpoint(checkpoint, "policy", keeps_all)
        checkpoint |= {name: part.state_dict() for name, part in self.parts_with_state().items()}
        own = {STAGE: self.stage, SETTINGS_KEY: plain_settings(self.given_settings)}
        own[PRECISION] = str(self.trainer.precision)
        checkpoint |= own | {"steps_done": self.steps_done}

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **settings: Any) -> Self:
        """The module of a checkpoint file, with its weights, for evaluation or for use in Python.

        Args:
            checkpoint_path: A file.
            *args: As Lightning has them, from ``map_location`` on.
            **settings: In place of those that the checkpoint was made with, which holds them as far as they are numbers
                and texts: objects (a reward that is a function, a generator) are given again.

        Example:
            >>> module = GRPOModule.load_from_checkpoint("runs/grpo/checkpoints/last.ckpt")  # doctest: +SKIP
        """
        checkpoint = read_checkpoint(Path(checkpoint_path), weights_only=True, mmap=True)
        check_stage(checkpoint, cls.stage)
        saved = still_used(checkpoint.get(SETTINGS_KEY, {}), settings)
        check_loaded_settings(cls, settings, saved)
        return super().load_from_checkpoint(checkpoint_path, *args, **(saved | settings))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint that does not fit, before any weight is changed; restores all but the weights."""
        check_stage(checkpoint, self.stage)
        check_parts(checkpoint, ("steps_done", *self.parts_with_state()))
        if self._trainer is not None and (self.trainer.state.fn, self.trainer.state.status) == ("fit", "running"):
            check_parts(checkpoint, ("loops", "lr_schedulers"), self.trainer.strategy.lightning_restore_optimizer)
        self.policy.check_checkpoint(checkpoint, "policy")
        self.policy.changed()
        self.steps.done = checkpoint["steps_done"]
        for name, part in self.parts_with_state().items():
            part.load_state_dict(checkpoint[name])
