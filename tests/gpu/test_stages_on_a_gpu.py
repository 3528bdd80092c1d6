"""The stages besides GRPO on one GPU: steps of ``bf16-mixed`` go where float32 steps on a CPU go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from runs import train_stage, weights
from stage_cases import STAGES
from toy_models import save_toy_model
from two_devices import ON_CPU, place

pytestmark = [
    pytest.mark.skipif(place(devices=1) is None, reason=f"needs a CUDA device ({ON_CPU}=1: a process without one)"),
    *([pytest.mark.gpu] if place(devices=1) != "cpu" else []),
]
FINETUNING: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"finetuning_type": "lora", "lora_rank": 4, "lora_dropout": 0.0},
}


@pytest.mark.parametrize("checkpointing", [False, "selective"])
@pytest.mark.parametrize("finetuning", FINETUNING)
@pytest.mark.parametrize("stage", STAGES)
def test_steps_go_where_those_of_a_cpu_go(stage, finetuning, checkpointing, tmp_path):
    model = save_toy_model(tmp_path / "model", "qwen2", hidden_size=64, num_attention_heads=2)
    settings = FINETUNING[finetuning] | {
        "gradient_checkpointing": checkpointing,
        "max_tokens_per_microbatch": 8,  # several micro-batches a step
        "optimizer": lambda p: torch.optim.SGD(p, lr=1e-3),
    }
    on_cpu = {"accelerator": "cpu", "precision": "32-true"}
    on_device = {"accelerator": "gpu" if place(devices=1) == "cuda" else "cpu", "precision": "bf16-mixed"}
    (tmp_path / "first").mkdir()
    first = train_stage(*STAGES[stage], model, tmp_path / "first", 1, trainer=on_cpu, **settings)
    checkpoint = tmp_path / "first.ckpt"  # a device draws other adapters and heads than a CPU
    first.trainer.save_checkpoint(checkpoint)
    trained = [name for name, weight in first.policy.model.named_parameters() if weight.requires_grad]
    before, moved = weights(first), []
    for name, trainer in (("cpu", on_cpu), ("device", on_device)):
        (folder := tmp_path / name).mkdir()
        options = {"trainer": trainer, "resume_from": checkpoint} | settings
        after = weights(train_stage(*STAGES[stage], model, folder, 4, **options))
        moved.append(torch.cat([(after[key].cpu() - before[key]).flatten() for key in trained]).double())
    exact, found = moved
    assert exact.norm() > 0
    assert (found - exact).norm() < 0.1 * exact.norm()
