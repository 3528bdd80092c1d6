"""One run of DPO, of TRL or of ours: ``python -m sides.dpo_side SIDE WORKLOAD.json RECORD.json``.

Both run unchanged, on float32 weights, on a GPU computed in bfloat16. Each counts the tokens of both completions and of a
prompt for each of them, padding left out: what it has learnt from, however it was computed.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from functools import partial
from typing import Any

import torch
import transformers

from sides.clock import PhaseClock
from sides.pair_workload import PairWorkload
from sides.record import save_record

CHECKPOINTING = {"trl": True, "trl_no_checkpointing": False, "ours": False, "ours_checkpointing": True}
"""Of each side: whether activations are computed again in the backward pass, which takes less memory. TRL's default is True,
ours is False."""


def trl_config(workload: PairWorkload, checkpointing: bool, folder: str) -> Any:
    """TRL's settings; what is not said here keeps its default."""
    from trl import DPOConfig

    return DPOConfig(
        output_dir=folder,
        max_steps=workload.warmup_steps + workload.steps,
        per_device_train_batch_size=workload.per_device_batch,
        gradient_accumulation_steps=workload.pairs_per_step // workload.per_device_batch,
        gradient_checkpointing=checkpointing,
        model_init_kwargs={"dtype": "float32"},
        use_cpu=workload.device == "cpu",
        bf16=workload.device == "cuda",
        beta=workload.beta,
        learning_rate=workload.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=workload.max_grad_norm,
        train_sampling_strategy="sequential",
        seed=workload.seed,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )


def trl(workload: PairWorkload, clock: PhaseClock, record: str, checkpointing: bool) -> None:
    """TRL's trainer."""
    import datasets
    from transformers import AutoTokenizer, TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from trl import DPOTrainer

    class MeasuredTrainer(DPOTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            clock.count(useful_tokens=inputs["attention_mask"].sum(), positions=inputs["attention_mask"].numel())
            return super().compute_loss(model, inputs, *args, **kwargs)

    class StepEnds(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.start()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.end_step()

        def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if "loss" in logs:  # comes after the end of its step
                clock.steps[-1]["notes"]["loss"] = float(logs["loss"])

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        trainer = MeasuredTrainer(
            model=workload.model,
            args=trl_config(workload, checkpointing, folder),
            train_dataset=datasets.Dataset.from_json(workload.pairs, cache_dir=folder),
            processing_class=AutoTokenizer.from_pretrained(workload.model),
            callbacks=[StepEnds()],
        )
        trainer.remove_callback(PrinterCallback)
        clock.after_step = partial(save_record, record, "trl", clock, trainer.model)
        trainer.train()
        save_record(record, "trl", clock, trainer.model)  # with the last step's loss


def ours(workload: PairWorkload, clock: PhaseClock, record: str, checkpointing: bool) -> None:
    """This project's module; what is not said here keeps its default."""
    from grpo_lightning import DPOModule, GRPODataModule
    from grpo_lightning.datamodules.preferences import Preferences
    from sides.our_trainer import make_trainer

    class MeasuredModule(DPOModule):
        def on_train_start(self) -> None:
            super().on_train_start()
            clock.start()

        def preferences(self, *args: Any, **kwargs: Any) -> Preferences:
            found = super().preferences(*args, **kwargs)
            lengths, group = found.rollouts.prompt_lengths, found.rollouts.group
            clock.count(useful_tokens=int(lengths[group].sum()) + found.rollouts.completion_ids.numel())
            return found

        def preference_loss(self, preferences: Preferences, micro_batch: Any, *args: Any, **kwargs: Any) -> Any:
            clock.count(positions=self.passes.scorer.count_tokens(preferences.rollouts, micro_batch.rows))
            return super().preference_loss(preferences, micro_batch, *args, **kwargs)

        def training_step(self, *args: Any, **kwargs: Any) -> None:
            super().training_step(*args, **kwargs)
            clock.note(loss=self.step_metrics["loss"])
            clock.end_step()

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=workload.learning_rate, weight_decay=0.0, fused=True)

    module = MeasuredModule(
        model_name_or_path=workload.model,
        beta=workload.beta,
        max_tokens_per_microbatch=workload.max_tokens_per_microbatch,
        gradient_checkpointing=checkpointing,
        max_grad_norm=workload.max_grad_norm,
        optimizer=optimizer,
        seed=workload.seed,
    )
    clock.after_step = partial(save_record, record, "grpo_lightning", clock, module.policy)
    data = GRPODataModule(dataset=workload.pairs, converter="dpo", batch_size=workload.pairs_per_step, shuffle=False)
    with tempfile.TemporaryDirectory() as folder:
        precision = "bf16-mixed" if workload.device == "cuda" else "32-true"
        trainer = make_trainer(workload.device, precision, workload.warmup_steps + workload.steps, folder)
        trainer.fit(module, datamodule=data)


def main(side: str, workload: PairWorkload, record: str) -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    if workload.device == "cpu":
        torch.set_num_threads(workload.threads)
    clock = PhaseClock(workload.device, detailed=False)
    (trl if side.startswith("trl") else ours)(workload, clock, record, CHECKPOINTING[side])


if __name__ == "__main__":
    main(sys.argv[1], PairWorkload.load(sys.argv[2]), sys.argv[3])
    sys.stdout.flush()
    os._exit(0)
