"""One run of grpo_lightning on a workload: ``python -m sides.our_side [--torch-compile] WORKLOAD.json RECORD.json``.

The module runs unchanged. Phases are measured by overriding its steps with themselves inside a phase.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
import transformers
from torch import Tensor

from grpo_lightning import GRPODataModule, GRPOModule
from grpo_lightning.generation import Generator, TransformersGenerator
from grpo_lightning.metrics.step_report import StepReport
from grpo_lightning.rollouts.sampler_canary import MISMATCH
from grpo_lightning.rollouts.source import RolloutSettings, RolloutSource
from grpo_lightning.scoring.planning import count_tokens
from grpo_lightning.types import Rollouts
from sides.clock import TRAINING, PhaseClock
from sides.our_trainer import PRECISIONS, make_trainer
from sides.record import save_record
from sides.workload import Workload, even_fraction

STEP_PHASES = {"train": "forward"}
"""The step's own phases that have another name here: backward passes and optimizer steps have phases inside train."""


class MeasuredReport(StepReport):
    """A StepReport whose phases are the clock's too."""

    clock: PhaseClock

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """As always, and charged."""
        with self.clock.phase(STEP_PHASES.get(name, name)), super().phase(name):
            yield


def measured_module(clock: PhaseClock) -> type[GRPOModule]:
    """GRPOModule that charges each part of its training step to a phase."""

    def counted(generate: Callable[..., Rollouts]) -> Callable[..., Rollouts]:
        @wraps(generate)
        def and_counted(*args: Any, **kwargs: Any) -> Rollouts:
            rollouts = generate(*args, **kwargs)
            clock.count(
                completions=rollouts.num_completions,
                prompt_tokens=rollouts.prompt_lengths[rollouts.group].sum(),
                completion_tokens=rollouts.completion_ids.numel(),
                longest_completion=rollouts.completion_lengths.max(),
            )
            return rollouts

        return and_counted

    class MeasuredModule(GRPOModule):
        def on_train_start(self) -> None:
            super().on_train_start()
            generator, optimization = self.source.generator, self.optimization
            generator.update_weights = clock.timed("weight_sync", generator.update_weights)
            optimization.accumulate_gradient = clock.timed("backward", optimization.accumulate_gradient)
            optimization.step = clock.timed("optimizer", optimization.step)
            clock.start()

        def training_step(self, *args: Any, **kwargs: Any) -> None:
            super().training_step(*args, **kwargs)
            clock.note(sampler_mismatch=float(self.step_metrics.get(MISMATCH, 0.0)))
            clock.end_step()

        def begin_step(self) -> StepReport:
            report = super().begin_step()
            report.__class__, report.clock = MeasuredReport, clock
            return report

        def make_source(self, settings: RolloutSettings) -> RolloutSource:
            source = super().make_source(settings)
            source.generate = counted(source.generate)  # type: ignore[method-assign]
            return source

        def policy_loss(self, experience: Any, micro_batch: Any, *args: Any, **kwargs: Any) -> Tensor:
            rollouts = experience.rollouts
            sizes = (rollouts.prompt_lengths, rollouts.completion_lengths, rollouts.group)
            clock.count(
                trained_tokens=count_tokens(*sizes, micro_batch.rows, self.passes.scorer.layout), micro_batches=1
            )
            return super().policy_loss(experience, micro_batch, *args, **kwargs)

    return MeasuredModule


def make_generator(workload: Workload) -> Generator:
    """What TRL uses too: vLLM in this process, or transformers."""
    if not workload.uses_vllm:
        return TransformersGenerator(**workload.engine_options)
    from grpo_lightning.generation import VLLMColocate

    return VLLMColocate(gpu_memory_utilization=workload.gpu_memory_utilization, **workload.engine_options)


def make_module(workload: Workload, module: type[GRPOModule], **further: Any) -> GRPOModule:
    """The module with TRL's defaults where it trains something else, and its own everywhere else.

    Args:
        workload: Model, lengths, sampling.
        module: The class.
        further: Settings beside those, or in their place.
    """
    settings: dict[str, Any] = {
        "model_name_or_path": workload.model,
        "rewards": [even_fraction],
        "generator": make_generator(workload),
        "num_generations": workload.num_generations,
        "max_completion_length": workload.max_completion_length,
        "temperature": workload.temperature,
        "beta": workload.beta,
        "importance_sampling_correction": workload.uses_vllm,  # TRL corrects vLLM's logprobs only
        "max_tokens_per_microbatch": workload.max_tokens_per_microbatch,
        "gradient_checkpointing": workload.gradient_checkpointing,
        "max_grad_norm": workload.max_grad_norm,
        "optimizer": lambda parameters: torch.optim.AdamW(
            parameters, lr=workload.learning_rate, weight_decay=0.0, fused=True
        ),
        "seed": workload.seed,
    }
    return module(**settings | further)


def train(workload: Workload, clock: PhaseClock, record: str | None = None, **further: Any) -> GRPOModule:
    """Runs all steps of the workload; the record is there after each of them. ``further`` as for ``make_module``."""
    if workload.device == "cpu":
        torch.set_num_threads(workload.threads)
    module = make_module(workload, measured_module(clock), **further)
    if record is not None:
        clock.after_step = partial(save_record, record, "grpo_lightning", clock, module)
    data = GRPODataModule(dataset=workload.prompts, batch_size=workload.prompts_per_step, shuffle=False)
    with tempfile.TemporaryDirectory() as folder:
        steps = workload.warmup_steps + workload.steps
        trainer = make_trainer(workload.device, PRECISIONS[workload.dtype], steps, folder)
        trainer.fit(module, datamodule=data)
    return module


def main(workload: Workload, record: str, **further: Any) -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    clock = PhaseClock(workload.device, together=TRAINING)
    train(workload, clock, record, **further)


if __name__ == "__main__":
    main(Workload.load(sys.argv[-2]), sys.argv[-1], torch_compile="--torch-compile" in sys.argv)
    sys.stdout.flush()
    os._exit(0)  # an engine in this process may hang at exit
