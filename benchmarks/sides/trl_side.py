"""One run of TRL's GRPOTrainer on a workload: ``python -m sides.trl_side WORKLOAD.json RECORD.json``.

TRL runs unchanged. Phases are measured by wrapping its methods, so whatever it does inside them counts.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import datasets
import torch
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from sides.clock import OTHER, TRAINING, PhaseClock
from sides.side_run import silence, train_and_record, trl_sampling_settings
from sides.workload import Workload, even_fraction


def make_config(workload: Workload, folder: str) -> GRPOConfig:
    """TRL's arguments for the workload; all others keep TRL's defaults."""
    settings = trl_sampling_settings(workload, folder)
    settings["model_init_kwargs"]["attn_implementation"] = workload.attention
    return GRPOConfig(
        **settings,
        num_generations=workload.num_generations,
        loss_type="dapo",
        beta=workload.beta,
        gradient_checkpointing=workload.gradient_checkpointing,
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
    silence()
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
        wrap_phases(trainer, clock)
        train_and_record(trainer, clock, record)


if __name__ == "__main__":
    main(Workload.load(sys.argv[1]), sys.argv[2])
    sys.stdout.flush()
    os._exit(0)  # an engine in this process may hang at exit
