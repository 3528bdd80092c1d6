"""One run of on-policy distillation, of TRL or of ours: ``python -m sides.distillation_side SIDE WORKLOAD.json RECORD.json``.

Both run unchanged, sample with vLLM in this process on a GPU, and learn the reverse KL divergence from a teacher beside the
student alone. TRL samples a prompt once, so that its data has each prompt as often as ours samples it.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from typing import Any

from sides.clock import TRAINING, PhaseClock
from sides.distillation_workload import DistillationWorkload
from sides.record import save_record
from sides.side_run import main, train_and_record, trl_sampling_settings

TEACHER_DTYPE = {"cpu": "float32", "cuda": "bfloat16"}


def trl_config(workload: DistillationWorkload, checkpointing: bool, folder: str) -> Any:
    """TRL's settings."""
    from trl import DistillationConfig

    return DistillationConfig(
        **trl_sampling_settings(workload, folder),
        beta=1.0,  # reverse KL
        gradient_checkpointing=checkpointing,
        teacher_model_init_kwargs={"dtype": TEACHER_DTYPE[workload.device]},
    )


def trl_trainer(clock: PhaseClock) -> type[Any]:
    """TRL's trainer, which counts tokens and charges sampling to a phase of its own."""
    from trl import DistillationTrainer

    class MeasuredTrainer(DistillationTrainer):
        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            with clock.phase("generate"):
                return super()._generate_single_turn(*args, **kwargs)

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            output = super()._generate_and_score_completions(inputs)
            prompt, completion = output["prompt_mask"], output["completion_mask"]
            clock.count(
                completions=len(completion),
                prompt_tokens=prompt.sum(),
                completion_tokens=completion.sum(),
                positions=prompt.numel() + completion.numel(),
            )
            return output

    return MeasuredTrainer


def trl(workload: DistillationWorkload, clock: PhaseClock, record: str, checkpointing: bool) -> None:
    """TRL's trainer."""
    import datasets
    from transformers import AutoTokenizer

    from sides.trl_steps import StepsOfTrainer

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        prompts = datasets.Dataset.from_json(workload.prompts, cache_dir=folder)
        trainer = trl_trainer(clock)(
            model=workload.model,
            teacher_model=workload.teacher,
            args=trl_config(workload, checkpointing, folder),
            train_dataset=prompts.select([n for n in range(len(prompts)) for _ in range(workload.num_generations)]),
            processing_class=AutoTokenizer.from_pretrained(workload.model, padding_side="left", truncation_side="left"),
            callbacks=[StepsOfTrainer(clock)],
        )
        train_and_record(trainer, clock, record)


def ours(workload: DistillationWorkload, clock: PhaseClock, record: str, checkpointing: bool) -> None:
    """This project's module; what is not said here keeps its default."""
    from grpo_lightning import GRPODataModule
    from grpo_lightning.training.distillation import Distillation
    from sides.our_side import PRECISIONS, make_module, measured_module
    from sides.our_trainer import make_trainer

    class MeasuredModule(measured_module(clock)):  # type: ignore[misc]  # made for the clock
        def training_step(self, *args: Any, **kwargs: Any) -> None:
            super().training_step(*args, **kwargs)
            clock.steps[-1]["notes"]["loss"] = float(self.step_metrics["distillation/divergence"])

    module = make_module(
        replace(workload, gradient_checkpointing=checkpointing),
        MeasuredModule,
        distillation=Distillation(teacher=workload.teacher, divergence="reverse_kl"),
        reward_weights=[0.0],  # the teacher alone
        importance_sampling_correction=False,
    )

    def save() -> None:
        slow = module.passes.scorer.slow_ways()
        save_record(record, "grpo_lightning", clock, module, slow_ways=slow)

    clock.after_step = save
    data = GRPODataModule(dataset=workload.prompts, batch_size=workload.prompts_per_step, shuffle=False)
    with tempfile.TemporaryDirectory() as folder:
        steps = workload.warmup_steps + workload.steps
        trainer = make_trainer(workload.device, PRECISIONS[workload.dtype], steps, folder)
        trainer.fit(module, datamodule=data)
    save()  # with the last step's loss


if __name__ == "__main__":
    main(DistillationWorkload, partial(PhaseClock, together=TRAINING), {"trl": trl, "ours": ours})
