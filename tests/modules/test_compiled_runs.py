"""Whole runs with ``model.torch_compile``: their steps are those of plain layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from runs import make_data, make_module, make_trainer, train_stage, weights, write_prompts
from stage_cases import STAGES

SETTINGS: dict[str, Any] = {"max_tokens_per_microbatch": 8, "optimizer": lambda p: torch.optim.SGD(p, lr=1e-3)}
LORA = {"finetuning_type": "lora", "lora_dropout": 0.0}


def trained(stage, model, folder, steps, **options):
    folder.mkdir(exist_ok=True)
    return train_stage(*STAGES[stage], model, folder, steps, trainer={"precision": "bf16-mixed"}, **SETTINGS, **options)


@pytest.mark.parametrize(("stage", "options"), [("sft", {"microbatch_layout": "padded"}), ("dpo", LORA)], ids=str)
def test_steps_with_compiled_layers_are_those_of_plain_ones(stage, options, tiny_model_dir, tmp_path):
    start = weights(trained(stage, tiny_model_dir, tmp_path / "start", 0, **options))
    plain = weights(trained(stage, tiny_model_dir, tmp_path / "plain", 3, **options))
    found = weights(trained(stage, tiny_model_dir, tmp_path / "found", 3, torch_compile=True, **options))
    moved, wanted = (
        torch.cat([(after[key] - start[key]).flatten() for key in start]).double() for after in (found, plain)
    )
    assert wanted.norm() > 0
    assert (moved - wanted).norm() < 0.05 * wanted.norm()


def test_nothing_is_compiled_for_sampling_with_transformers(tiny_model_dir, tmp_path):
    compiled = torch._dynamo.utils.counters["stats"]
    data = make_data(tmp_path, eval_dataset=str(write_prompts(tmp_path / "eval.jsonl", 4)))
    rows = []
    for is_compiled in (False, True):
        torch._dynamo.reset()
        compiled.clear()
        module = make_module(tiny_model_dir, torch_compile=is_compiled)
        rows.append([row for batch in make_trainer(tmp_path).predict(module, datamodule=data) for row in batch])
        assert compiled["unique_graphs"] == 0
    assert rows[0] == rows[1]
