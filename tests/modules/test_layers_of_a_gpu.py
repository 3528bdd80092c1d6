"""What layers compute with on a GPU, in whole runs on a CPU: the steps are those of the layers of transformers."""

from __future__ import annotations

from copy import copy
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from runs import train_stage, weights
from stage_cases import STAGES

from grpo_lightning.policy.policy import Policy
from grpo_lightning.scoring.norms import compile_norms

SETTINGS: dict[str, Any] = {"max_tokens_per_microbatch": 8, "optimizer": lambda p: torch.optim.SGD(p, lr=1e-3)}


def as_on_a_gpu(policy, model):
    compile_norms(model)
    policy.weight_gradients.install(model)


def trained(stage, model, folder, steps, **options):
    folder.mkdir(exist_ok=True)
    trainer = {"precision": "bf16-mixed"} | options.pop("trainer", {})
    return train_stage(*STAGES[stage], model, folder, steps, trainer=trainer, **(SETTINGS | options))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("options", [{}, {"finetuning_type": "lora"}, {"gradient_checkpointing": "selective"}], ids=str)
def test_steps_are_those_of_the_layers_of_transformers(stage, options, tiny_model_dir, tmp_path, monkeypatch):
    start = weights(trained(stage, tiny_model_dir, tmp_path / "start", 0, **options))
    plain = weights(trained(stage, tiny_model_dir, tmp_path / "plain", 3, **options))
    monkeypatch.setattr(Policy, "_speed_up", as_on_a_gpu)
    found = weights(trained(stage, tiny_model_dir, tmp_path / "found", 3, **options))
    moved, wanted = (
        torch.cat([(after[key] - start[key]).flatten() for key in start]).double() for after in (found, plain)
    )
    assert wanted.norm() > 0
    assert (moved - wanted).norm() < 0.05 * wanted.norm()


def test_a_resumed_run_goes_on_bit_for_bit(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(Policy, "_speed_up", as_on_a_gpu)
    checkpoint = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2)
    kept = {"trainer": {"callbacks": [checkpoint], "enable_checkpointing": True}}
    whole = trained("sft", tiny_model_dir, tmp_path / "whole", 4, **kept)
    again = {"trainer": {"callbacks": [copy(checkpoint)], "enable_checkpointing": True}}
    resumed = trained("sft", tiny_model_dir, tmp_path / "again", 4, resume_from=str(tmp_path / "step=2.ckpt"), **again)
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


class GradientOfEachLoss(Callback):
    """Asks autograd for gradients by itself, as callbacks that log norms of them do."""

    def on_before_backward(self, trainer, module, loss):
        torch.autograd.grad(loss, [module.policy.model.get_input_embeddings().weight], retain_graph=True)


def test_what_callbacks_ask_of_autograd_changes_no_gradient(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(Policy, "_speed_up", as_on_a_gpu)
    alone = weights(trained("sft", tiny_model_dir, tmp_path / "alone", 2))
    asked = {"trainer": {"callbacks": [GradientOfEachLoss()]}}
    beside = weights(trained("sft", tiny_model_dir, tmp_path / "beside", 2, **asked))
    torch.testing.assert_close(beside, alone, rtol=0, atol=0)
