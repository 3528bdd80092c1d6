"""Unsloth's side: ``python -m peers.unsloth_run WORKLOAD.json RECORD.json``, full fine-tuning with an engine in this process.

Unsloth replaces TRL's GRPOTrainer when it is imported, so the clock and the record are those of TRL's side. Its own engine
(``fast_inference``) refuses full fine-tuning; it then trains with TRL's colocated vLLM. ``README.md`` says what its settings do.
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.metadata import version
from typing import Any

import unsloth  # noqa: F401  # before trl and transformers, which it patches
from sides import trl_side
from sides.clock import TRAINING, PhaseClock
from sides.record import save_record, versions
from sides.side_run import silence, trl_sampling_settings
from sides.workload import Workload, even_fraction
from transformers.trainer_callback import PrinterCallback


def load(workload: Workload) -> tuple[Any, Any]:
    """Model and tokenizer: weights in float32, computed with in bfloat16, where the workload is ``mixed``."""
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=workload.model,
        max_seq_length=2 * workload.max_completion_length,
        load_in_4bit=False,
        full_finetuning=True,
        float32_mixed_precision=workload.dtype == "mixed",
        use_gradient_checkpointing="unsloth" if workload.gradient_checkpointing else False,
        random_state=workload.seed,
        local_files_only=True,
    )
    return model, tokenizer


def settings_of(workload: Workload, folder: str) -> dict[str, Any]:
    """Arguments of its GRPOConfig; ``engine_options`` of the workload come last."""
    settings = trl_sampling_settings(workload, folder)
    del settings["model_init_kwargs"]
    return settings | {
        "num_generations": workload.num_generations,
        "loss_type": "dapo",
        "beta": workload.beta,
        "epsilon_high": 0.2,  # without these two lines Unsloth sets DAPO's values
        "mask_truncated_completions": False,
        "optim": "adamw_torch_fused",
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "gradient_checkpointing": workload.gradient_checkpointing,
        **workload.engine_options,
    }


def main(workload: Workload, record: str) -> None:
    silence()
    clock = PhaseClock(workload.device, together=TRAINING)
    model, tokenizer = load(workload)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_side.measured_trainer(clock)(
            model=model,
            reward_funcs=even_fraction,
            args=trl_side.GRPOConfig(**settings_of(workload, folder)),
            train_dataset=trl_side.read_rows(workload, folder),
            processing_class=tokenizer,
            callbacks=[trl_side.StepEnds(clock)],
        )
        trl_side.wrap_phases(trainer, clock)
        further = {
            "versions": versions() | {name: version(name) for name in ("unsloth", "unsloth_zoo")},
            "precision": {"weights": str(next(model.parameters()).dtype), "autocast_bf16": bool(trainer.args.bf16)},
        }
        trainer.remove_callback(PrinterCallback)
        clock.after_step = lambda: save_record(record, "unsloth", clock, trainer.model, **further)
        trainer.train()


if __name__ == "__main__":
    main(Workload.load(sys.argv[1]), sys.argv[2])
    sys.stdout.flush()
    os._exit(0)  # an engine in this process may hang at exit
