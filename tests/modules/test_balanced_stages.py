"""SFT and DPO of a mixture of experts: its load-balancing loss is part of their steps, under any split."""

from __future__ import annotations

import json

import pytest
import torch
from runs import make_trainer
from toy_models import save_toy_model

from grpo_lightning import GRPODataModule
from grpo_lightning.modules.dpo import DPOModule
from grpo_lightning.modules.sft import SFTModule

STAGES = {"sft": SFTModule, "dpo": DPOModule}


@pytest.fixture(scope="module")
def experts_dir(tmp_path_factory):
    return save_toy_model(tmp_path_factory.mktemp("experts"), "qwen3_moe", router_aux_loss_coef=0.5)


def step(stage, experts_dir, tmp_path, **settings):
    """Metrics of a step of one, and what SGD of rate 1 took from the weights: the gradient."""
    rows = [{"prompt": f"{i}+{i}=", "completion": f" {2 * i}"} for i in range(4)]
    if stage == "dpo":
        rows = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": " no idea"} for row in rows]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    defaults = {"optimizer": lambda params: torch.optim.SGD(params, lr=1.0), "max_grad_norm": 0.0}
    module = STAGES[stage](model_name_or_path=str(experts_dir), **(defaults | settings))
    data = GRPODataModule(dataset=str(path), batch_size=4, converter=stage, shuffle=False)
    make_trainer(tmp_path).fit(module, datamodule=data)
    flat = torch.cat([p.detach().flatten() for p in module.policy.model.parameters()])
    return module.step_metrics, flat


@pytest.mark.parametrize("stage", list(STAGES))
def test_the_loss_of_the_models_own_weight_is_trained_and_logged_under_any_split(stage, experts_dir, tmp_path):
    whole, weights = step(stage, experts_dir, tmp_path, max_tokens_per_microbatch=4096)
    parts, in_parts = step(stage, experts_dir, tmp_path, max_tokens_per_microbatch=40)
    without, plain = step(stage, experts_dir, tmp_path, max_tokens_per_microbatch=4096, router_aux_loss_coef=0.0)
    assert (weights - plain).norm() > 1e-3
    assert (weights - in_parts).norm() < 1e-2 * (weights - plain).norm()
    for name in ("router/aux_loss", "router/load_max_share", "router/load_entropy", "loss"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-4)
    added = 0.5 * whole["router/aux_loss"] if stage == "sft" else 0.0
    assert whole["loss"] - without["loss"] == pytest.approx(added, rel=1e-3, abs=1e-5)
    assert not any(name.startswith("router/") for name in without)
