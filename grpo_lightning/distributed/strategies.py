"""Strategies of the Trainer: which ones train, and FSDP2 over all ranks under a name of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
)
from lightning.pytorch.strategies.fsdp import FSDPStrategy
from torch.distributed import default_pg_timeout
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from grpo_lightning.distributed.checkpoint_check import CheckpointNotReadableError, check_stage, fault_of, intact_beside
from grpo_lightning.distributed.checkpoint_io import not_written
from grpo_lightning.distributed.checkpoint_values import as_written, with_python_scalars
from grpo_lightning.distributed.folder_checksums import folder_fault, note_checksums
from grpo_lightning.distributed.folder_contents import contents_fault, read_into, read_rest
from grpo_lightning.distributed.gather import gather_objects, is_distributed
from grpo_lightning.distributed.moved_folder import finish_move, part_of, put_in_place

METADATA = "meta.pt"
"""Of a sharded checkpoint, by Lightning's convention: what is neither weights nor optimizer states."""


class FSDP2Strategy(ModelParallelStrategy):
    """Shards weights, gradients and optimizer states over all ranks (torch's ``fully_shard``): trainer.strategy=fsdp2.

    Lightning's ModelParallelStrategy with its sizes filled in. With ``tensor_parallel_size`` above 1, neighbouring ranks
    also split the matrices of each layer, and train together on what each of them has sampled.

    Args:
        tensor_parallel_size: Ranks that hold each matrix between them; at most the GPUs of a node, whose links are fast.
        save_distributed_checkpoint: A checkpoint is a directory to which every rank writes its part; False collects
            the whole on the first rank.
        process_group_backend: nccl on GPUs, gloo on CPUs where it is not set.
    """

    def __init__(
        self,
        tensor_parallel_size: int = 1,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(
            tensor_parallel_size=tensor_parallel_size,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
        )
        self.tensor_parallel_size = tensor_parallel_size
        if tensor_parallel_size < 1:
            raise ValueError(f"trainer.strategy.init_args.tensor_parallel_size={tensor_parallel_size}: use 1 or more.")

    def setup_environment(self) -> None:
        """Fills in the sizes, now that the number of ranks is known."""
        ranks, size = self.num_nodes * self.num_processes, self.tensor_parallel_size
        if ranks % size:
            raise ValueError(
                f"trainer.strategy.init_args.tensor_parallel_size={size} does not divide the {ranks} ranks of "
                "trainer.devices and trainer.num_nodes. Use a divisor, or 1."
            )
        self._data_parallel_size = ranks // size
        super().setup_environment()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Writes beside the place, then moves there: a directory that a kill leaves half overwritten mixes two steps.

        All nodes see the directory, as sharded checkpoints need.

        Raises:
            CheckpointNotWrittenError: On every rank, if one of them cannot write; what was there before still is.
        """
        checkpoint = as_written(checkpoint)
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, Path(filepath), storage_options)
            return
        path = Path(self.broadcast(str(filepath)))
        part = part_of(path)
        if self.is_global_zero:
            shutil.rmtree(part, ignore_errors=True)
        self.barrier()
        self._together(path, partial(super().save_checkpoint, checkpoint, part, storage_options))
        self._together(path, partial(note_checksums, part, self.global_rank, self.world_size))
        self._together(path, partial(put_in_place, path) if self.is_global_zero else lambda: None)

    def _together(self, path: Path, write: Callable[[], None]) -> None:
        """Waits until every rank has written; where one could not, all of them raise, and what there is makes room again."""
        own: BaseException | None = None
        try:
            write()
        except (OSError, RuntimeError, CheckpointException) as error:
            own = error
        reason = _of_any_rank(None if own is None else _reason(own))
        if reason is not None:
            if self.is_global_zero:
                shutil.rmtree(part_of(path), ignore_errors=True)
            self.barrier()
            raise not_written(path, reason) from own

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Trained weights alone: frozen ones would be copied, or gathered, to be left out by the module."""
        whole = not self._save_distributed_checkpoint
        options = StateDictOptions(full_state_dict=whole, cpu_offload=True, ignore_frozen_params=True)
        assert self.model is not None
        return get_model_state_dict(self.model, options=options)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """This rank's part of it, for a checkpoint."""
        _make_groups_plain(optimizer)
        return super().optimizer_state(optimizer)

    def load_checkpoint(
        self, checkpoint_path: str | os.PathLike[str], weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Trained weights and optimizer states from the parts of any number of ranks; returns the rest.

        Lightning's own asks for every weight of the model, and a checkpoint has only those that are trained.

        Raises:
            ValueError: If the checkpoint does not fit the config, before any weight is changed.
            CheckpointNotReadableError: If it is not what was written.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        if self.is_global_zero:
            finish_move(path)
        self.barrier()
        self._check(path)
        if not (path / METADATA).is_file():  # the whole in one file
            return super().load_checkpoint(path, weights_only)
        rest = read_rest(path / METADATA, weights_only)
        module: Any = self.lightning_module
        check_stage(rest, module.stage)
        module.policy.check_checkpoint(rest, "policy")
        weights = get_model_state_dict(module, options=StateDictOptions(ignore_frozen_params=True))
        names = module.policy.trained_names("policy")
        trained = {name: weight for name, weight in weights.items() if name in names}
        read_into({"state_dict": trained}, path, weights_only)
        module.load_state_dict(trained, strict=False)
        for index, optimizer in enumerate(self.optimizers):
            key, options = f"optimizer_{index}", StateDictOptions(cpu_offload=True)
            _make_groups_plain(optimizer)
            state = {key: get_optimizer_state_dict(module, optimizer)}
            read_into(state, path, weights_only)
            set_optimizer_state_dict(module, optimizer, optim_state_dict=state[key], options=options)
        return rest

    def _check(self, path: Path) -> None:
        """Every rank reads its share, of a file the first the whole, and all of them refuse what one has found."""
        fault = _of_any_rank(self._fault_of(path))
        if fault is not None:
            advice = self.broadcast(intact_beside(path) if self.is_global_zero else "")
            raise CheckpointNotReadableError(f"The checkpoint {path} cannot be used: {fault}. {advice}")

    def _fault_of(self, path: Path) -> str | None:
        if not path.is_dir():
            return fault_of(path) if self.is_global_zero else None
        fault = folder_fault(path, self.global_rank, self.world_size)
        if fault is None and not (path / METADATA).is_file():
            fault = f"it lacks {METADATA}"
        return contents_fault(path) if fault is None else fault


def _of_any_rank(found: str | None) -> str | None:
    """What the first rank has found that has found anything; called on every one."""
    return next((each for each in gather_objects(found) if each is not None), None)


def _reason(error: BaseException) -> str:
    """What torch gives as the tracebacks of all ranks, in the words of the first that failed."""
    if isinstance(error, CheckpointException) and error.failures:
        return str(next(iter(error.failures.values()))[0])
    return str(error)


def _make_groups_plain(optimizer: Optimizer) -> None:
    """Python's scalars for numpy's, such as ``np.bool_``, which torch does not take for parts of a sharded state."""
    for group in optimizer.param_groups:
        group.update({name: with_python_scalars(value) for name, value in group.items() if name != "params"})


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2 over all ranks")


FSDP1 = (
    "trainer.strategy=fsdp is FSDP1, which flattens weights, so that an engine cannot be given them by name. "
    "Use trainer.strategy=fsdp2, which shards as much."
)

SPAWNED = (
    "trainer.strategy=ddp_spawn starts processes that would be sent the module, which cannot be sent. Use trainer.strategy=ddp, "
    "which starts the program once per device; in a notebook ddp_notebook, before anything has used a GPU."
)


ONE_YEAR = 365.0 * 24 * 3600
"""In seconds."""


def check_not_spawned() -> None:
    """For the state of a module that is pickled: refuses it where a process is being spawned, which is to get it.

    Raises:
        ValueError: Naming the strategies that do not.
    """
    if get_spawning_popen() is not None:
        raise ValueError(SPAWNED)


def allow_waits(strategy: Strategy, seconds: float) -> None:
    """Adds to the time that ranks wait for each other in a collective: so much longer one of them may take by right.

    To be called before ranks are connected; afterwards it has no effect.

    Args:
        strategy: Of the ranks.
        seconds: Beyond a year, as where a limit is inf, it is one: torch's clock holds 292.
    """
    if isinstance(strategy, DDPStrategy | ModelParallelStrategy) and not is_distributed():
        longer = timedelta(seconds=min(seconds, ONE_YEAR))
        strategy._timeout = (strategy._timeout or default_pg_timeout) + longer


def _unsupported(name: str) -> str:
    instead = (
        "fsdp2, which shards weights, gradients and optimizer states as ZeRO-3 does"
        if "deepspeed" in name.lower()
        else "ddp or fsdp2"
    )
    return f"trainer.strategy: {name} is not supported. Use trainer.strategy={instead}."


def check_strategy_name(name: str) -> None:
    """Refuses by name what check_strategy would refuse, before Lightning asks for GPUs or packages that it needs.

    Args:
        name: ``trainer.strategy`` as the config has it: a registered name, or a class path.

    Raises:
        ValueError: In check_strategy's words.
    """
    short = name.rpartition(".")[2]
    if short == "FSDPStrategy" or short in ("fsdp", "fsdp_cpu_offload"):
        raise ValueError(FSDP1)
    if short.lower().startswith("deepspeed"):
        raise ValueError(_unsupported(short))
    if short.startswith("ddp_spawn"):
        raise ValueError(SPAWNED)
    if "." not in name and name.isidentifier() and name.islower() and name not in ("auto", *StrategyRegistry):
        raise ValueError(
            f"trainer.strategy={name} is no strategy. Choose one of auto, ddp and fsdp2, or a class path of Lightning's."
        )


def check_strategy(strategy: Strategy) -> None:
    """Refuses what would train wrongly or not at all.

    Raises:
        ValueError: Naming the strategy that does it.
    """
    if isinstance(strategy, FSDPStrategy):
        raise ValueError(FSDP1)
    if isinstance(strategy, ModelParallelStrategy):
        size = strategy._tensor_parallel_size
        if size != 1 and not isinstance(strategy, FSDP2Strategy):
            raise ValueError(
                f"trainer.strategy: ModelParallelStrategy with tensor_parallel_size={size} knows nothing of how ranks "
                "that split a matrix share their rollouts. Use trainer.strategy=fsdp2, or class_path: "
                "grpo_lightning.distributed.strategies.FSDP2Strategy with init_args.tensor_parallel_size."
            )
    elif not isinstance(strategy, DDPStrategy | SingleDeviceStrategy):
        raise ValueError(_unsupported(type(strategy).__name__))
