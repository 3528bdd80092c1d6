"""One run of DPO, of TRL or of ours: ``python -m sides.dpo_side SIDE WORKLOAD.json RECORD.json``.

Both run unchanged. Each counts the tokens of both completions and of a
prompt for each of them, padding left out: what it has learnt from, however it was computed.
"""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

import torch

from sides.clock import PhaseClock
from sides.pair_workload import PairWorkload
from sides.record import save_record
from sides.side_run import main, train_and_record, trl_settings


def trl_config(workload: PairWorkload, checkpointing: bool, folder: str) -> Any:
    """TRL's settings."""
    from trl import DPOConfig

    return DPOConfig(
        **trl_settings(workload, workload.pairs_per_step, folder),
        gradient_checkpointing=checkpointing,
        beta=workload.beta,
        train_sampling_strategy="sequential",
    )


def trl(workload: PairWorkload, clock: PhaseClock, record: str, checkpointing: bool) -> None:
    """TRL's trainer."""
    import datasets
    from transformers import AutoTokenizer
    from trl import DPOTrainer

    from sides.trl_steps import StepsOfTrainer

    class MeasuredTrainer(DPOTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            clock.count(useful_tokens=inputs["attention_mask"].sum(), positions=inputs["attention_mask"].numel())
            return super().compute_loss(model, inputs, *args, **kwargs)

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        trainer = MeasuredTrainer(
            model=workload.model,
            args=trl_config(workload, checkpointing, folder),
            train_dataset=datasets.Dataset.from_json(workload.pairs, cache_dir=folder),
            processing_class=AutoTokenizer.from_pretrained(workload.model),
            callbacks=[StepsOfTrainer(clock)],
        )
        train_and_record(trainer, clock, record)


def ours(workload: PairWorkload, clock: PhaseClock, record: str, checkpointing: bool) -> None:
    """This project's module; what is not said here keeps its default."""
    from grpo_lightning import DPOModule, GRPODataModule
    from grpo_lightning.datamodules.written.preferences import Preferences
    from sides.our_trainer import PRECISIONS, make_trainer

    class MeasuredModule(DPOModule):
        def on_train_start(self) -> None:
            super().on_train_start()
            clock.start()

        def preferences(self, *args: Any, **kwargs: Any) -> Preferences:
            found = super().preferences(*args, **kwargs)
            lengths, group = found.rollouts.prompt_lengths, found.rollouts.group
            clock.count(useful_tokens=int(lengths[group].sum()) + found.rollouts.completion_ids.numel())
            return found

        def preference_loss(self, preferences: Preferences, *args: Any) -> Any:
            *_, micro_batch = args
            clock.count(positions=self.passes.scorer.count_tokens(preferences.rollouts, micro_batch.rows))
            return super().preference_loss(preferences, *args)

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

    def save() -> None:
        slow = module.passes.scorer.slow_ways()
        save_record(record, "grpo_lightning", clock, module.policy, slow_ways=slow)

    clock.after_step = save
    data = GRPODataModule(dataset=workload.pairs, converter="dpo", batch_size=workload.pairs_per_step, shuffle=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            workload.device, PRECISIONS[workload.dtype], workload.warmup_steps + workload.steps, folder
        )
        trainer.fit(module, datamodule=data)


if __name__ == "__main__":
    main(PairWorkload, partial(PhaseClock, detailed=False), {"trl": trl, "ours": ours})
