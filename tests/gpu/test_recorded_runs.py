"""Runs whose passes are launched by CUDA graphs go on from a checkpoint as if they had never ended."""

from __future__ import annotations

import pytest
import torch
from runs import train_stage, weights
from stage_cases import STAGES
from toy_models import save_toy_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ON_GPU = {"accelerator": "gpu", "precision": "bf16-mixed"}
LENGTHS = (10, 100, 40, 110, 20, 60)
"""Within 128, beyond which flash attention adds up gradients of queries in any order."""
ROWS = [
    {"prompt": f"{i}+{i}=", "completion": "7" * length, "chosen": "7" * length, "rejected": "8" * length}
    for i, length in enumerate(LENGTHS)
]


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_has_the_weights_of_one_that_was_not_interrupted(stage, tmp_path, caplog):
    model = save_toy_model(tmp_path / "model", "qwen2", hidden_size=64, num_attention_heads=2)
    module_class, converter, _ = STAGES[stage]
    length = {} if stage == "reward model" else {"max_completion_length": 512}

    def run(name, steps, **options):
        (folder := tmp_path / name).mkdir()
        settings = {"cuda_graphs": True, "trainer": ON_GPU, "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2)}
        return train_stage(module_class, converter, ROWS, model, folder, steps, **(settings | length | options))

    whole = run("whole", 4)
    first = run("first", 2)
    first.trainer.save_checkpoint(checkpoint := tmp_path / "first.ckpt")
    resumed = run("resumed", 4, resume_from=checkpoint)
    after, expected = weights(resumed), weights(whole)
    assert resumed.passes.scorer._forward.graphs._graphs  # it did launch some
    assert "could not record" not in caplog.text and "in spite of" not in caplog.text
    for name, weight in expected.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=0, msg=name)
    assert any(not torch.equal(weights(first)[name], weight) for name, weight in expected.items())
