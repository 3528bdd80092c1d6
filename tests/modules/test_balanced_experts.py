"""A mixture of experts is trained with the load-balancing loss of its config, exactly under any split."""

from __future__ import annotations

import pytest
from peft import LoraConfig
from runs import fit, make_module
from test_step_exactness import flat, relative_distance, step_gradient
from toy_models import save_toy_model


@pytest.fixture(scope="module")
def experts_dir(tmp_path_factory):
    return save_toy_model(tmp_path_factory.mktemp("experts"), "qwen3_moe", router_aux_loss_coef=0.5)


def test_a_steps_gradient_with_the_loss_is_the_same_under_any_split(experts_dir, tmp_path):
    def gradient(**settings):
        return step_gradient(experts_dir, tmp_path, **settings)

    expected = gradient(microbatch_layout="padded", max_tokens_per_microbatch=4096)
    assert expected["number of passes"] == 1
    without = gradient(router_aux_loss_coef=0, max_tokens_per_microbatch=4096)
    assert relative_distance(without, expected) > 1e-2  # the model's own 0.5 is in force
    stated = gradient(router_aux_loss_coef=0.5, max_tokens_per_microbatch=4096)
    assert relative_distance(stated, expected) < 1e-5
    for layout, budget, passes in (("packed", 1, 18), ("packed", 150, None), ("padded", 150, None)):
        found = gradient(microbatch_layout=layout, max_tokens_per_microbatch=budget)
        assert found["number of passes"] == passes or (passes is None and found["number of passes"] > 1)
        assert relative_distance(found, expected) < 1e-5


def test_the_log_has_the_loss_and_the_load_however_a_step_is_split(experts_dir, tmp_path):
    def numbers(budget, coefficient=None):
        module = fit(experts_dir, tmp_path, max_tokens_per_microbatch=budget, router_aux_loss_coef=coefficient)
        return module.step_metrics

    whole, parts, without = numbers(4096), numbers(40), numbers(4096, 0.0)
    for name in ("router/aux_loss", "router/load_max_share", "router/load_entropy", "loss"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-4)
    assert whole["loss"] - without["loss"] == pytest.approx(0.5 * whole["router/aux_loss"], rel=1e-4)
    assert 0.25 <= whole["router/load_max_share"] <= 0.5  # 2 of 4 experts for each token
    assert 0.5 <= whole["router/load_entropy"] <= 1
    assert not any(name.startswith("router/") for name in without)


def test_completions_without_advantage_are_balanced_too(experts_dir, tmp_path):
    constant = step_gradient(experts_dir, tmp_path, rewards=[lambda completions, **_: [1.0] * len(completions)])
    assert flat(constant).norm() > 1e-3


def test_the_loss_is_refused_where_there_is_none(tiny_model_dir):
    with pytest.raises(ValueError, match=r"router_aux_loss_coef=0.1: qwen2 has no load-balancing loss"):
        make_module(tiny_model_dir, router_aux_loss_coef=0.1)
    with pytest.raises(ValueError, match="rewards an uneven use"):
        make_module(tiny_model_dir, router_aux_loss_coef=-0.1)


def test_adapters_on_experts_are_trained_with_the_loss(experts_dir, tmp_path):
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapter = LoraConfig(r=2, lora_dropout=0.0, target_modules=["q_proj"], target_parameters=targets)
    module = fit(experts_dir, tmp_path, finetuning_type="lora", peft_config=adapter, max_tokens_per_microbatch=40)
    trained = {name: p for name, p in module.policy.model.named_parameters() if p.requires_grad}
    moved = [name for name, p in trained.items() if "lora_B" in name and "experts" in name and bool(p.any())]
    assert len(moved) == 4  # two matrices in each of two layers
    assert "router/load_entropy" in module.step_metrics
