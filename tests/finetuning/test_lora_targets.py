"""Adapters on all linear layers of models that use some of these layers without calling them."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from runs import fit
from toy_models import save_toy_model

from grpo_lightning.finetuning.adapters import merged_state_dict
from grpo_lightning.finetuning.lora_targets import leave_out_unfit, refuse_unfit, unfit_layers
from grpo_lightning.finetuning.settings import FinetuningSettings

sys.path.append(str(Path(__file__).parents[1] / "scoring"))
from architectures import build

IDS = torch.tensor([[5, 8, 13, 21, 34, 55]])
LEFT_OUT = {
    "jamba": {"mamba.dt_proj", "mamba.out_proj"},
    "nemotron_h": {"mixer.out_proj"},
    "falcon_h1": {"mamba.out_proj"},
    "bamba": {"mamba.out_proj"},  # peft adapts it, and the CUDA kernel reads the weight without the adapter
    "phimoe": {"mlp.router"},
    "llama4_text": {"feed_forward.router"},
    "qwen2": set(),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_an_adapter_on_all_layers_trains_each_and_merges_to_the_same_model(name, caplog):
    base = build(name)
    linear = {n for n, m in base.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    unfit = unfit_layers(base)
    assert {".".join(n.split(".")[-2:]) for n in unfit} == LEFT_OUT[name]
    settings = FinetuningSettings(finetuning_type="lora", lora_rank=2, lora_dropout=0.0)
    config = settings.make_peft_config(copy.deepcopy(base))
    assert ("set model.lora_target to names" in caplog.text) == bool(unfit)
    config.init_lora_weights = False  # B is not 0: the adapter changes what the model says
    torch.manual_seed(0)
    model = get_peft_model(base, config).eval()
    adapted = {n for n, _ in model.get_base_model().named_modules() if f"{n}.lora_A" in dict(base.named_modules())}
    assert adapted == linear - set(unfit)
    logits = model(input_ids=IDS, use_cache=False).logits
    logits.log_softmax(-1)[..., 3].sum().backward()
    merged = build(name)
    merged.load_state_dict(dict(merged_state_dict(model)))
    found = merged(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-3)
    names = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert names == set()


@pytest.mark.parametrize(("name", "target"), [("jamba", "dt_proj"), ("llama4_text", "router")])
def test_naming_such_a_layer_is_refused_with_the_reason(name, target):
    base = build(name)
    unfit = unfit_layers(base)
    get_peft_model(base, LoraConfig(r=2, target_modules=[target, "q_proj"]))
    with pytest.raises(ValueError, match=rf"put adapters on \w+\.{target} \(.*use model.lora_target=all"):
        refuse_unfit(base, unfit)


def test_a_run_refuses_an_adapter_on_a_router_before_the_first_step(tmp_path):
    model_dir = save_toy_model(tmp_path / "model", "phimoe")
    with pytest.raises(ValueError, match=r"put adapters on mlp.router \(PhimoeTopKRouter gives more than one tensor\)"):
        fit(model_dir, tmp_path, finetuning_type="lora", lora_target="router,q_proj")


def test_layers_that_the_config_excludes_stay_excluded():
    config = LoraConfig(target_modules="all-linear", exclude_modules=["k_proj"])
    leave_out_unfit(build("phimoe"), config)
    assert config.exclude_modules == ["k_proj", "model.layers.0.mlp.router", "model.layers.1.mlp.router"]
    with pytest.raises(ValueError, match=r"exclude_modules='.*_proj'.*mlp.router.*list of names"):
        leave_out_unfit(build("phimoe"), LoraConfig(target_modules="all-linear", exclude_modules=".*_proj"))
