"""One run of TRL's GRPOTrainer on a workload: ``python -m sides.trl_side WORKLOAD.json RECORD.json``.

TRL runs unchanged. Phases are measured by wrapping its methods, so whatever it does inside them counts.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import datasets
import torch
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from sides.clock import OTHER, TRAINING, PhaseClock
from sides.record import save_record
from sides.workload import Workload, even_fraction


def make_config(workload: Workload, folder: str) -> GRPOConfig:
    """TRL's arguments for the workload; all others keep TRL's defaults."""
    rollouts = workload.prompts_per_step * workload.num_generations
    if rollouts % workload.per_device_batch:
        raise SystemExit(
            f"--per-device-batch={workload.per_device_batch} does not divide the {rollouts} completions of a step."
        )
    on_cuda = workload.device == "cuda"
    weights = "bfloat16" if workload.dtype == "bfloat16" else "float32"
    return GRPOConfig(
        output_dir=folder,
        max_steps=workload.warmup_steps + workload.steps,
        per_device_train_batch_size=workload.per_device_batch,
        gradient_accumulation_steps=rollouts // workload.per_device_batch,
        num_generations=workload.num_generations,
        max_completion_length=workload.max_completion_length,
        temperature=workload.temperature,
        loss_type="dapo",
        beta=workload.beta,
        learning_rate=workload.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=workload.max_grad_norm,
        use_cpu=not on_cuda,
        bf16=workload.dtype != "float32",
        gradient_checkpointing=workload.gradient_checkpointing,
        model_init_kwargs={"dtype": weights, "attn_implementation": workload.attention},
        use_vllm=workload.uses_vllm,
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=workload.gpu_memory_utilization,
        shuffle_dataset=False,
        seed=workload.seed,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )


def measured_trainer(clock: PhaseClock) -> type[GRPOTrainer]:
    """GRPOTrainer that counts tokens and charges its optimizer to a phase."""

    class MeasuredTrainer(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            output = super()._generate_and_score_completions(inputs)
            prompt, completion = output["prompt_mask"], output["completion_mask"]
            clock.count(
                completions=len(completion),
                prompt_tokens=prompt.sum(),
                completion_tokens=completion.sum(),
                trained_tokens=prompt.numel() + completion.numel(),
                longest_completion=completion.sum(1).max(),
            )
            return output

        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            optimizer = super().create_optimizer(*args, **kwargs)
            inner = getattr(optimizer, "optimizer", optimizer)
            inner.step = clock.timed("optimizer", inner.step)
            return optimizer

    return MeasuredTrainer


class StepEnds(TrainerCallback):
    """Tells the clock where steps begin, which train but for what has a phase of its own, and where they end."""

    def __init__(self, clock: PhaseClock) -> None:
        self.clock = clock
        self.training = ExitStack()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self.clock.start()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Passes follow one another without a synchronisation between them."""
        self.training.enter_context(self.clock.phase("forward"))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Ends the step."""
        self.training.close()
        self.clock.end_step()


def wrap_phases(trainer: GRPOTrainer, clock: PhaseClock) -> None:
    """Charges the trainer's methods to the phases that both sides report."""

    def scoring_phase() -> str:
        return "forward" if torch.is_grad_enabled() else "old_and_reference"

    phases: list[tuple[Any, str, str | Callable[[], str]]] = [
        (trainer, "_generate_and_score_completions", OTHER),
        (trainer, "_generate_single_turn", "generate"),
        (trainer, "_calculate_rewards", "rewards"),
        (trainer, "_get_per_token_logps_and_entropies", scoring_phase),
        (trainer, "compute_loss", "forward"),
        (trainer.accelerator, "backward", "backward"),
        (trainer.accelerator, "clip_grad_norm_", "optimizer"),
    ]
    if trainer.use_vllm:
        phases.append((trainer.vllm_generation, "sync_weights", "weight_sync"))
    for owner, name, phase in phases:
        setattr(owner, name, clock.timed(phase, getattr(owner, name)))


def load_processing(workload: Workload) -> Any:
    """What makes tokens of prompts."""
    return AutoTokenizer.from_pretrained(workload.model, padding_side="left", truncation_side="left")


def read_rows(workload: Workload, folder: str) -> datasets.Dataset:
    """The prompts; ``folder`` is for what datasets keeps of them."""
    return datasets.Dataset.from_json(workload.prompts, cache_dir=folder)


def main(workload: Workload, record: str) -> None:
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    if workload.device == "cpu":
        torch.set_num_threads(workload.threads)
    clock = PhaseClock(workload.device, together=TRAINING)
    with tempfile.TemporaryDirectory() as folder:
        trainer = measured_trainer(clock)(
            model=workload.model,
            reward_funcs=even_fraction,
            args=make_config(workload, folder),
            train_dataset=read_rows(workload, folder),
            processing_class=load_processing(workload),
            callbacks=[StepEnds(clock)],
        )
        trainer.remove_callback(PrinterCallback)
        wrap_phases(trainer, clock)
        clock.after_step = partial(save_record, record, "trl", clock, trainer.model)
        trainer.train()


if __name__ == "__main__":
    main(Workload.load(sys.argv[1]), sys.argv[2])
    sys.stdout.flush()
    os._exit(0)  # an engine in this process may hang at exit
