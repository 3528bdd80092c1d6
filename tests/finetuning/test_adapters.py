"""Merged tensors and adapter files, against plain peft and plain transformers."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from four_bits import four_bit_model
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from runs import fit, make_module, make_trainer
from toy_models import build_model, save_toy_model
from transformers import AutoModelForCausalLM

from grpo_lightning.finetuning.adapter_directory import refuse_adapter_directory
from grpo_lightning.finetuning.adapter_files import load_adapter, save_adapter, save_merged
from grpo_lightning.finetuning.adapters import adapter_rank, adapter_state, hot_load_obstacle, merged_state_dict
from grpo_lightning.finetuning.base_identity import identify_base
from grpo_lightning.generation.vllm.weights.stream import WeightStream

IDS = torch.arange(3, 40)[None]


def trained_lora(model: torch.nn.Module, **options) -> PeftModel:
    """A LoRA adapter whose every tensor has been moved away from its start."""
    config = LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "lora_dropout": 0.0} | options))
    policy = get_peft_model(model, config).eval()
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return policy


def logprobs(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.log_softmax(-1)


def test_a_merged_weight_is_the_base_plus_alpha_over_rank_times_b_a():
    policy = trained_lora(build_model(), target_modules=["q_proj"])
    layer = policy.get_base_model().model.layers[0].self_attn.q_proj
    expected = layer.base_layer.weight + 8 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    merged = dict(merged_state_dict(policy))
    torch.testing.assert_close(merged["model.layers.0.self_attn.q_proj.weight"], expected.detach())
    untouched = policy.get_base_model().model.layers[0].self_attn.k_proj.weight
    assert torch.equal(merged["model.layers.0.self_attn.k_proj.weight"], untouched)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True},
        {"trainable_token_indices": [5, 9]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 32}},
        {"lora_bias": True, "target_modules": ["q_proj", "k_proj"]},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.filterwarnings("ignore:.*ensure_weight_tying")
def test_a_plain_model_with_the_merged_tensors_gives_the_adapted_logprobs(options, tied):
    policy = trained_lora(build_model(tie_word_embeddings=tied), **options)
    plain = build_model(tie_word_embeddings=tied, seed=9)
    merged = dict(merged_state_dict(policy))
    assert merged.keys() == plain.state_dict().keys()
    plain.load_state_dict(merged)
    torch.testing.assert_close(logprobs(plain), logprobs(policy), rtol=0, atol=5e-5)


def test_other_methods_of_peft_and_transposed_layers_are_merged_too():
    gpt2 = trained_lora(build_model("gpt2"), fan_in_fan_out=True, target_modules=["c_attn", "c_proj"])
    ia3 = get_peft_model(build_model(), IA3Config(target_modules=["v_proj"], feedforward_modules=[]))
    for parameter in ia3.parameters():
        if parameter.requires_grad:
            parameter.data *= 1.5
    for policy, architecture in ((gpt2, "gpt2"), (ia3.eval(), "qwen2")):
        plain = build_model(architecture, seed=9)
        plain.load_state_dict(dict(merged_state_dict(policy)))
        torch.testing.assert_close(logprobs(plain), logprobs(policy), rtol=0, atol=5e-5)


def test_the_base_stays_bit_identical_over_1000_merges_in_bfloat16():
    policy = trained_lora(build_model().bfloat16())
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    first = dict(merged_state_dict(policy))
    for _ in range(1000):
        last = dict(merged_state_dict(policy))
        adapter_state(policy)
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(torch.equal(last[name], first[name]) for name in first)


@pytest.mark.parametrize("merge_adapters", [False, True], ids=["hot", "merged"])
@pytest.mark.parametrize("bits", [16, 4])
def test_the_base_stays_bit_identical_over_1000_syncs(tiny_model_dir, merge_adapters, bits):
    base = four_bit_model(tiny_model_dir) if bits == 4 else build_model().bfloat16()
    policy = trained_lora(base, target_modules=["q_proj", "down_proj"])
    before = {name: p.detach().clone() for name, p in policy.named_parameters() if "lora_" not in name}
    with torch.no_grad():
        for step in range(1000):
            stream = WeightStream(policy, merge_adapters=merge_adapters)
            sent = sum(tensor.numel() for _, tensor in stream) + len(adapter_state(policy).tensors)
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.add_(1e-3 * (step % 3 - 1))  # a training step between two syncs
    assert sent > 100_000
    for name, weight in before.items():
        assert torch.equal(policy.get_parameter(name), weight), name


def test_a_bfloat16_base_is_added_to_in_float32_and_rounded_once():
    policy = trained_lora(build_model().bfloat16())
    layer = policy.get_base_model().model.layers[1].mlp.up_proj
    delta = 2 * layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
    expected = (layer.base_layer.weight.double() + delta).bfloat16()
    merged = dict(merged_state_dict(policy))["model.layers.1.mlp.up_proj.weight"]
    assert (merged != expected).float().mean() < 1e-3  # ties that float32 and float64 round apart


def test_an_adapter_merged_in_place_is_not_counted_twice():
    policy = trained_lora(build_model())
    policy.merge_adapter()
    with pytest.raises(RuntimeError, match=r"already merged into model.layers.0.self_attn.q_proj"):
        dict(merged_state_dict(policy))


def test_the_state_of_an_adapter_is_what_peft_would_save(tmp_path):
    from safetensors.torch import load_file

    policy = trained_lora(build_model())
    policy.save_pretrained(tmp_path)
    state = adapter_state(policy)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert state.tensors.keys() == saved.keys()
    assert all(torch.equal(state.tensors[name], saved[name]) for name in saved)
    assert json.loads(json.dumps(state.config))["r"] == 4


def test_what_an_engine_cannot_hot_load_is_named():
    assert hot_load_obstacle(trained_lora(build_model())) is None
    assert hot_load_obstacle(build_model()) == "the policy has no adapter"
    assert hot_load_obstacle(trained_lora(build_model(), use_dora=True)) == "the adapter has use_dora"
    scaled = trained_lora(build_model(), alpha_pattern={"q_proj": 64})  # vLLM 0.25 would scale it as the others
    assert hot_load_obstacle(scaled) == "the adapter has alpha_pattern"
    other_base = trained_lora(build_model(), init_lora_weights="olora")
    assert hot_load_obstacle(other_base) == "the adapter has init_lora_weights=olora, which changes the base"
    assert hot_load_obstacle(trained_lora(build_model(), init_lora_weights="gaussian")) is None
    rows = trained_lora(build_model(), trainable_token_indices=[5])
    assert hot_load_obstacle(rows) == "the adapter has trainable_token_indices"
    head = trained_lora(build_model(), target_modules=["lm_head"])
    assert hot_load_obstacle(head) == "the adapter changes lm_head"
    assert adapter_rank(trained_lora(build_model(), rank_pattern={"k_proj": 16})) == 16


@pytest.mark.parametrize("tied", [False, True])
def test_a_merged_export_loads_in_transformers_with_the_trained_logprobs(tmp_path, tied):
    policy = trained_lora(build_model(tie_word_embeddings=tied), trainable_token_indices=[5])
    save_merged(policy, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(policy.get_base_model())
    torch.testing.assert_close(logprobs(loaded), logprobs(policy), rtol=0, atol=5e-5)


# ---- files: an adapter knows its base


@pytest.fixture
def adapter(tiny_model_dir, tmp_path) -> Path:
    policy = trained_lora(AutoModelForCausalLM.from_pretrained(tiny_model_dir))
    save_adapter(policy, tmp_path / "adapter", str(tiny_model_dir))
    return tmp_path / "adapter"


def test_an_adapter_continues_on_its_base_whatever_its_files_are_called(tiny_model_dir, adapter, tmp_path):
    copied = tmp_path / "copy"
    AutoModelForCausalLM.from_pretrained(tiny_model_dir).save_pretrained(copied, max_shard_size="100KB")
    assert not (copied / "model.safetensors").exists()  # several files
    assert identify_base(str(tiny_model_dir)).difference(str(copied)) is None
    policy = load_adapter(AutoModelForCausalLM.from_pretrained(copied), str(adapter), str(copied))
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), adapter)
    torch.testing.assert_close(logprobs(policy.eval()), logprobs(plain.eval()), rtol=0, atol=0)
    assert {name for name, p in policy.named_parameters() if p.requires_grad} == {
        name for name, _ in policy.named_parameters() if "lora_" in name
    }


def test_an_adapter_on_another_base_is_refused(adapter, tmp_path):
    other = save_toy_model(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"was trained on .*tiny_model.* not on .*other.*the weights differ"):
        load_adapter(AutoModelForCausalLM.from_pretrained(other), str(adapter), str(other))


def test_an_adapter_on_a_base_with_another_config_is_refused(tiny_model_dir, adapter, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.config.rms_norm_eps = 0.1
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"config.json differs in rms_norm_eps"):
        load_adapter(model, str(adapter), str(tmp_path / "other"))


def test_a_base_with_another_config_is_refused_without_a_look_at_its_weights(tiny_model_dir, tmp_path):
    other = save_toy_model(tmp_path / "other", hidden_size=32)
    (other / "model.safetensors").write_bytes(b"cut off")
    identity = identify_base(str(tiny_model_dir))
    assert "hidden_size" in str(identity.difference(str(other)))
    (other / "config.json").write_bytes((tiny_model_dir / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"^teacher=.*other': the weights cannot be read"):
        identity.difference(str(other), "teacher")


def test_an_adapter_applied_twice_is_refused(tiny_model_dir, adapter, tmp_path):
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), adapter)
    save_merged(policy, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with pytest.raises(ValueError, match="if the model has the adapter merged in already, leave the adapter out"):
        load_adapter(merged, str(adapter), str(tmp_path / "merged"))
    with pytest.raises(
        ValueError, match=r"^model.distillation.teacher=.* is an adapter. Name an export .* base \('.*tiny_model"
    ):
        refuse_adapter_directory(str(adapter), "model.distillation.teacher")
    with pytest.raises(ValueError, match=r"model.model_name_or_path=.* is an adapter"):
        make_module(adapter)


def test_an_adapter_without_identity_is_taken_with_a_warning_where_names_differ(tiny_model_dir, adapter, caplog):
    (adapter / "base_identity.json").unlink()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "someone/model"}))
    with caplog.at_level(logging.WARNING):
        load_adapter(AutoModelForCausalLM.from_pretrained(tiny_model_dir), str(adapter), str(tiny_model_dir))
    assert "only the name 'someone/model'" in caplog.text


def test_a_directory_without_an_adapter_is_refused_by_name(tiny_model_dir):
    with pytest.raises(ValueError, match=r"model.adapter_name_or_path='/nowhere' holds no adapter that can be read"):
        load_adapter(build_model(), "/nowhere", str(tiny_model_dir))


def test_a_run_exports_model_and_adapter(tiny_model_dir, tmp_path):
    from grpo_lightning.callbacks import HuggingFaceExport

    module = fit(
        tiny_model_dir, tmp_path, max_steps=1, finetuning_type="lora", trainer={"callbacks": [HuggingFaceExport()]}
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "hf/last", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    expected = logprobs(module.policy.model.eval())
    assert (expected - logprobs(base)).abs().max() > 1e-3
    torch.testing.assert_close(logprobs(merged), expected, rtol=0, atol=5e-5)
    adapted = PeftModel.from_pretrained(base, tmp_path / "hf/last-adapter").eval()
    torch.testing.assert_close(logprobs(adapted), expected, rtol=0, atol=1e-6)
    assert (tmp_path / "hf/last-adapter/base_identity.json").is_file()


def test_an_adapter_export_of_a_full_model_is_refused_before_weights_load(tiny_model_dir, tmp_path):
    from grpo_lightning.callbacks import HuggingFaceExport

    module = make_module(tiny_model_dir)
    trainer = make_trainer(tmp_path, callbacks=[HuggingFaceExport(forms=["adapter"])])
    from runs import make_data

    with pytest.raises(ValueError, match=r"export.forms has adapter, but model.finetuning_type=full"):
        trainer.fit(module, datamodule=make_data(tmp_path))
    assert module.policy.model is None
