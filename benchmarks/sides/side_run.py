"""What sides of a comparison share: TRL's settings, how its trainers train and leave a record, and the command of a stage."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import transformers
from transformers.trainer_callback import PrinterCallback

from sides.clock import PhaseClock
from sides.distillation_workload import DistillationWorkload
from sides.pair_workload import PairWorkload
from sides.record import save_record
from sides.ways import SIDES
from sides.workload import Workload

StageWorkload = DistillationWorkload | PairWorkload
StageRun = Callable[[Any, PhaseClock, str, bool], None]
"""Of a workload, its clock, the path of the record, and whether activations are computed again."""


def trl_settings(workload: Workload | PairWorkload, examples: int, folder: str) -> dict[str, Any]:
    """Arguments of any of TRL's configs; what is not said here or by the caller keeps its default.

    Args:
        workload: Of the comparison.
        examples: Of an optimizer step, as TRL counts them.
        folder: For what TRL writes.
    """
    if examples % workload.per_device_batch:
        raise SystemExit(
            f"--per-device-batch={workload.per_device_batch} does not divide the {examples} completions of a step."
        )
    return {
        "output_dir": folder,
        "max_steps": workload.warmup_steps + workload.steps,
        "per_device_train_batch_size": workload.per_device_batch,
        "gradient_accumulation_steps": examples // workload.per_device_batch,
        "model_init_kwargs": {"dtype": "bfloat16" if workload.dtype == "bfloat16" else "float32"},
        "use_cpu": workload.device == "cpu",
        "bf16": workload.dtype != "float32",
        "learning_rate": workload.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": workload.max_grad_norm,
        "seed": workload.seed,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }


def trl_sampling_settings(workload: Workload, folder: str) -> dict[str, Any]:
    """``trl_settings`` of a config that samples completions, with an engine in this process on a GPU."""
    return trl_settings(workload, workload.prompts_per_step * workload.num_generations, folder) | {
        "max_completion_length": workload.max_completion_length,
        "temperature": workload.temperature,
        "use_vllm": workload.uses_vllm,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": workload.gpu_memory_utilization,
        "shuffle_dataset": False,
    }


def train_and_record(trainer: Any, clock: PhaseClock, record: str) -> None:
    """Trains with one of TRL's trainers; the record is whole after every step, and has the last one's loss at the end."""
    trainer.remove_callback(PrinterCallback)
    clock.after_step = partial(save_record, record, "trl", clock, trainer.model)
    trainer.train()
    save_record(record, "trl", clock, trainer.model)


def silence() -> None:
    """Of what libraries say beside results."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def main(
    workload_class: type[StageWorkload], make_clock: Callable[[str], PhaseClock], sides: Mapping[str, StageRun]
) -> None:
    """Runs what the command line ``SIDE WORKLOAD.json RECORD.json`` says, and ends the process.

    Args:
        workload_class: Of the file.
        make_clock: Of a device.
        sides: ``trl`` and ``ours``.
    """
    side, settings, record = sys.argv[1:]
    workload, way = workload_class.load(settings), SIDES[side]
    silence()
    if workload.device == "cpu":
        torch.set_num_threads(workload.threads)
    tokens = int(workload.max_tokens_per_microbatch * way.share)
    run = sides["trl" if side.startswith("trl") else "ours"]
    run(replace(workload, max_tokens_per_microbatch=tokens), make_clock(workload.device), record, way.checkpointing)
    sys.stdout.flush()
    os._exit(0)  # an engine in this process may hang at exit
