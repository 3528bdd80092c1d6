"""The measurement of memory before the first step, in the stages that sample nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from memory_device import SavedTensors, on_device
from runs import make_trainer

from grpo_lightning import DPOModule, GRPODataModule, RewardModelModule, SFTModule
from grpo_lightning.memory import budget as memory_budget
from grpo_lightning.memory import rehearsal
from grpo_lightning.training import passes

LARGE, LARGEST, STEP = 2**34, 512, 32
ROWS = [
    {"prompt": f"{i}+{i}=", "completion": f"{2 * i}", "chosen": f"{2 * i}" * (1 + i % 2), "rejected": f"{i}000"}
    for i in range(24)
]
STAGES = {
    "sft": (SFTModule, {"max_completion_length": 8}),
    "dpo": (DPOModule, {"max_completion_length": 8}),
    "kto": (DPOModule, {"max_completion_length": 8, "loss_type": "kto"}),
    "rm": (RewardModelModule, {"max_length": 24}),
}
CONVERTERS = {"sft": "sft", "dpo": "dpo", "kto": "dpo", "rm": "dpo"}


@pytest.fixture(autouse=True)
def _a_world_32_times_smaller(monkeypatch):
    sizes = {"LARGEST_BUDGET": LARGEST, "BUDGET_STEP": STEP, "PROBE_TOKENS": 128, "PASS_WORK": 0.0}
    for module in (memory_budget, rehearsal, passes):
        for name in sizes.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, sizes[name])


def train(stage: str, model_dir: Path, folder: Path, gauge=None, max_steps: int = 2, **settings):
    make, own = STAGES[stage]
    trainer, resume_from = settings.pop("trainer", {}), settings.pop("resume_from", None)
    defaults = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}
    module = make(model_name_or_path=str(model_dir), **(defaults | own | settings))
    if gauge is not None:
        on_device(gauge)(module)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = GRPODataModule(dataset=str(folder / "rows.jsonl"), batch_size=24, converter=CONVERTERS[stage])
    make_trainer(folder, max_steps, **trainer).fit(module, datamodule=data, ckpt_path=resume_from)
    return module


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("settings", [{}, {"finetuning_type": "lora", "lora_dropout": 0.2}])
def test_a_run_is_the_same_to_the_bit_with_and_without(tiny_model_dir, tmp_path, stage, settings):
    gauge = SavedTensors(LARGE)
    plain = train(stage, tiny_model_dir, tmp_path, **settings)
    rehearsed = train(stage, tiny_model_dir, tmp_path, gauge, **settings)
    assert gauge.passes > 3 and rehearsed.memory_plan is not None and plain.memory_plan is None
    assert rehearsed.passes.max_tokens == plain.passes.max_tokens == LARGEST
    assert rehearsed.step_metrics["loss"] == plain.step_metrics["loss"]
    for name, parameter in plain.policy.model.named_parameters():
        assert torch.equal(parameter, rehearsed.policy.model.get_parameter(name)), name


@pytest.mark.parametrize("stage", STAGES)
def test_auto_takes_what_the_device_has_room_for(tiny_model_dir, tmp_path, stage):
    needed = train(stage, tiny_model_dir, tmp_path, SavedTensors(LARGE)).memory_plan.needed
    device = SavedTensors(needed.bytes // 2)
    module = train(stage, tiny_model_dir, tmp_path, device)
    plan = module.memory_plan
    assert module.passes.max_tokens == plan.budget < LARGEST
    assert plan.needed.bytes < device.total and device.used == 0
    assert module.steps_done == 2


@pytest.mark.parametrize("stage", STAGES)
def test_a_number_that_does_not_fit_is_an_error_before_the_first_step(tiny_model_dir, tmp_path, stage):
    with pytest.raises(MemoryError, match=r"A micro-batch of \d+ tokens does not fit into memory") as error:
        train(stage, tiny_model_dir, tmp_path, SavedTensors(150_000), max_tokens_per_microbatch=64)
    assert f"model.{'max_length below 24' if stage == 'rm' else 'max_completion_length below 8'};" in str(error.value)


def test_a_resumed_run_keeps_the_size_that_auto_chose(tiny_model_dir, tmp_path):
    keep = {"callbacks": [ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1)], "enable_checkpointing": True}
    needed = train("sft", tiny_model_dir, tmp_path, SavedTensors(LARGE)).memory_plan.needed
    first = train("sft", tiny_model_dir, tmp_path, SavedTensors(needed.bytes // 2), 1, trainer=keep)
    resumed = train("sft", tiny_model_dir, tmp_path, SavedTensors(LARGE), 2, resume_from=str(tmp_path / "step=1.ckpt"))
    assert resumed.passes.max_tokens == first.passes.max_tokens < LARGEST
