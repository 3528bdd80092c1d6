"""Runs of TRL's GRPOTrainer for ``learning.py``: ``python -m sides.learning_trl RUN.json SEED [SEED ...]``.

TRL runs unchanged, with a callback that keeps the curve. Runs of one process are separate but for the vLLM engine, which the
first of them starts: TRL sends all weights before the first batch of a run, so nothing of the one before is left in it.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from transformers import AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from sides.addition import right_sum
from sides.learning_curve import Curve
from sides.learning_run import LearningRun


class CurveCallback(TrainerCallback):
    """Tells the curve where steps begin and end; rewards are those that TRL logs."""

    def __init__(self, curve: Curve) -> None:
        self.curve = curve
        self.trainer: GRPOTrainer | None = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        assert self.trainer is not None
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        self.curve.start(model, self.trainer.processing_class)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the step."""
        assert self.trainer is not None
        self.curve.end_step(state.global_step, self.trainer._metrics["train"]["reward"][-1])


def make_config(run: LearningRun, seed: int) -> GRPOConfig:
    """TRL's arguments; all others keep TRL's defaults."""
    rollouts = run.prompts_per_step * run.num_generations
    return GRPOConfig(
        output_dir=str(Path(run.folder, f"trl_seed{seed}")),
        max_steps=run.steps,
        per_device_train_batch_size=run.per_device_batch,
        gradient_accumulation_steps=rollouts // run.per_device_batch,
        num_generations=run.num_generations,
        max_completion_length=run.max_completion_length,
        temperature=run.temperature,
        loss_type="dapo",
        beta=0.0,
        epsilon=run.epsilon,
        scale_rewards="group",
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode="sequence_mask",
        vllm_importance_sampling_clip_max=3.0,
        optim="adamw_torch_fused",
        learning_rate=run.learning_rate,
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        weight_decay=0.0,
        max_grad_norm=run.max_grad_norm,
        use_cpu=not run.on_gpu,
        bf16=run.on_gpu,
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        use_vllm=run.on_gpu,
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=run.gpu_memory_utilization,
        vllm_max_model_length=run.max_model_length,
        seed=seed,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )


def share_one_engine() -> None:
    """Hands the engine of this process's first trainer to every later one: starting vLLM takes longer than a run."""
    from trl.generation import vllm_generation

    make, made = vllm_generation.LLM, []

    def first_one(**arguments: Any) -> Any:
        if not made:
            made.append((arguments, make(**arguments)))
        of_first, engine = made[0]
        if arguments != of_first:
            raise SystemExit(f"TRL asks for a second engine, with {arguments} in place of {of_first}.")
        return engine

    vllm_generation.LLM = first_one


def train(run: LearningRun, seed: int, born: float) -> None:
    """One run, from the weights in the model directory."""
    before = dict(os.environ)
    callback = CurveCallback(Curve(run, "trl", seed, born))
    trainer = GRPOTrainer(
        model=run.model,
        reward_funcs=right_sum,
        args=make_config(run, seed),
        train_dataset=datasets.Dataset.from_json(str(run.train_file), cache_dir=run.folder),
        processing_class=AutoTokenizer.from_pretrained(run.model, padding_side="left", truncation_side="left"),
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    callback.trainer = trainer
    trainer.train()
    callback.trainer = None
    trainer.accelerator.free_memory()
    del trainer
    gc.collect()
    if run.on_gpu:
        torch.cuda.empty_cache()
    # TRL names a rank for vLLM; accelerate would take the next run for a distributed one.
    for name in set(os.environ) - set(before):
        del os.environ[name]


def main(run_file: str, seeds: list[int]) -> None:
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    run = LearningRun.load(run_file)
    born = float(os.environ.get("LEARNING_STARTED", time.time()))
    if run.on_gpu:
        share_one_engine()
    for seed in seeds:
        train(run, seed, born)
        born = time.time()


if __name__ == "__main__":
    main(sys.argv[1], [int(seed) for seed in sys.argv[2:]])
    sys.stdout.flush()
    os._exit(0)  # an engine in this process may hang at exit
