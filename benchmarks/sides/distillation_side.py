"""One run of on-policy distillation, of TRL or of ours: ``python -m sides.distillation_side SIDE WORKLOAD.json RECORD.json``.

Both run unchanged, sample with vLLM in this process on a GPU, and learn the reverse KL divergence from a teacher beside the
student alone. TRL samples a prompt once, so that its data has each prompt as often as ours samples it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import transformers

from sides.clock import TRAINING, PhaseClock
from sides.distillation_workload import DistillationWorkload
from sides.record import save_record
from sides.ways import SIDES

TEACHER_DTYPE = {"cpu": "float32", "cuda": "bfloat16"}


def trl_config(workload: DistillationWorkload, checkpointing: bool, folder: str) -> Any:
    """TRL's settings; what is not said here keeps its default."""
    from trl import DistillationConfig

    completions = workload.prompts_per_step * workload.num_generations
    on_cuda = workload.device == "cuda"
    return DistillationConfig(
        output_dir=folder,
        max_steps=workload.warmup_steps + workload.steps,
        per_device_train_batch_size=workload.per_device_batch,
        gradient_accumulation_steps=completions // workload.per_device_batch,
        max_completion_length=workload.max_completion_length,
        temperature=workload.temperature,
        beta=1.0,  # reverse KL
        learning_rate=workload.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=workload.max_grad_norm,
        use_cpu=not on_cuda,
        bf16=workload.dtype != "float32",
        gradient_checkpointing=checkpointing,
        model_init_kwargs={"dtype": "bfloat16" if workload.dtype == "bfloat16" else "float32"},
        teacher_model_init_kwargs={"dtype": TEACHER_DTYPE[workload.device]},
        use_vllm=on_cuda,
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=workload.gpu_memory_utilization,
        shuffle_dataset=False,
        seed=workload.seed,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
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
    from transformers.trainer_callback import PrinterCallback

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
        trainer.remove_callback(PrinterCallback)
        clock.after_step = partial(save_record, record, "trl", clock, trainer.model)
        trainer.train()
        save_record(record, "trl", clock, trainer.model)  # with the last step's loss


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
        slow = module.passes.scorer.slow_ways(module.device)
        save_record(record, "grpo_lightning", clock, module, slow_ways=slow)

    clock.after_step = save
    data = GRPODataModule(dataset=workload.prompts, batch_size=workload.prompts_per_step, shuffle=False)
    with tempfile.TemporaryDirectory() as folder:
        steps = workload.warmup_steps + workload.steps
        trainer = make_trainer(workload.device, PRECISIONS[workload.dtype], steps, folder)
        trainer.fit(module, datamodule=data)
    save()  # with the last step's loss


def main(side: str, workload: DistillationWorkload, record: str) -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    if workload.device == "cpu":
        torch.set_num_threads(workload.threads)
    clock, way = PhaseClock(workload.device, together=TRAINING), SIDES[side]
    tokens = int(workload.max_tokens_per_microbatch * way.share)
    run = trl if side.startswith("trl") else ours
    run(replace(workload, max_tokens_per_microbatch=tokens), clock, record, way.checkpointing)


if __name__ == "__main__":
    main(sys.argv[1], DistillationWorkload.load(sys.argv[2]), sys.argv[3])
    sys.stdout.flush()
    os._exit(0)  # an engine in this process may hang at exit
