"""QLoRA for real: bitsandbytes on this device, 4-bit weights that stay as they are, exports with the trained logprobs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from four_bits import four_bit_model, repack
from peft import LoraConfig, get_peft_model
from runs import fit, make_module, make_trainer
from test_lora import adapter_weights, keep_rollouts, run, token_logprobs
from transformers import AutoModelForCausalLM

from grpo_lightning.callbacks.export import export
from grpo_lightning.commands.saved_policy import load_checkpoint
from grpo_lightning.finetuning.adapter_files import save_merged
from grpo_lightning.finetuning.adapters import adapter_state, merged_outlines, merged_state_dict
from grpo_lightning.finetuning.quantization import dequantized, keep_trainable_layout
from grpo_lightning.finetuning.settings import FinetuningSettings
from grpo_lightning.generation.vllm.weights.stream import base_state_dict

ROOT = Path(__file__).resolve().parents[2]
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
QLORA = {"finetuning_type": "qlora", "lora_dropout": 0.0, "bnb_4bit_compute_dtype": "float32"}


def packed_weights(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.named_parameters() if p.dtype == torch.uint8}


def test_adapters_are_trained_on_4_bit_weights_that_stay_bit_identical(tiny_model_dir, tmp_path):
    module = make_module(tiny_model_dir, **QLORA)
    module.trainer = make_trainer(tmp_path)
    module.configure_model()
    start = packed_weights(module.policy.model)
    assert len(start) == 7 * 2  # every linear layer of both blocks, the head not
    assert {type(p).__name__ for p in module.policy.model.parameters() if p.dtype == torch.uint8} == {"Params4bit"}
    trained = fit(tiny_model_dir, tmp_path, max_steps=3, **QLORA)
    for _ in range(10):
        dict(merged_state_dict(trained.policy.model))
        adapter_state(trained.policy.model)
    assert all(torch.equal(w, start[name]) for name, w in packed_weights(trained.policy.model).items())
    assert all(w.abs().max() > 0 for name, w in adapter_weights(trained.policy.model).items() if "lora_B" in name)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])])
@pytest.mark.parametrize("tokens", [1, 40, 2000])  # bitsandbytes has kernels of its own for some numbers
@torch.no_grad()
def test_a_4_bit_layer_computes_with_the_numbers_that_engines_are_sent(device, tokens):
    from bitsandbytes.nn import Linear4bit

    options = {"bias": False, "compute_dtype": torch.bfloat16, "quant_type": "nf4", "compress_statistics": True}
    layer = Linear4bit(512, 256, **options)
    layer.weight.data.normal_(0, 0.02)
    layer = layer.bfloat16().to(device).train()
    keep_trainable_layout(layer)
    x = torch.randn(tokens, 512, dtype=torch.bfloat16, device=device)
    expected = torch.nn.functional.linear(x.double(), dequantized(layer.weight).double())
    # Rounding to bfloat16 is 0.002 on average; a scale that is one step of its 8 bits off, 0.01.
    assert ((layer(x) - expected).norm() / expected.norm()).item() < 0.004


def test_the_settings_reach_bitsandbytes_with_the_seeds_defaults(tiny_model_dir, tmp_path):
    module = make_module(tiny_model_dir, finetuning_type="lora", load_in_4bit=True)  # the same as qlora
    module.trainer = make_trainer(tmp_path)
    module.configure_model()
    config = module.policy.model.config.quantization_config
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", True)
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert module.policy.model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert {p.dtype for p in module.policy.model.parameters() if p.requires_grad} == {torch.float32}


def test_rollouts_come_from_the_model_with_its_linear_weights_rounded_to_nf4(tiny_model_dir, tmp_path):
    import bitsandbytes

    seen = []
    fit(tiny_model_dir, tmp_path, on_module=lambda m: seen.append(keep_rollouts(m)), **QLORA)
    ((rollouts,),) = seen
    full = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    unquantised = torch.cat(token_logprobs(full, rollouts))
    for name, weight in full.named_parameters():
        if "proj.weight" in name:
            packed = bitsandbytes.functional.quantize_4bit(weight.data, compress_statistics=True, quant_type="nf4")
            weight.data = bitsandbytes.functional.dequantize_4bit(*packed)
    expected = torch.cat(token_logprobs(full, rollouts)).detach()
    torch.testing.assert_close(rollouts.sampling_logprobs, expected, rtol=0, atol=1e-4)
    assert (unquantised - expected).abs().max() > 1e-2  # 4 bits make a difference


def test_a_merged_tensor_is_the_dequantised_weight_plus_the_adapter(tiny_model_dir, tmp_path):
    module = fit(tiny_model_dir, tmp_path, max_steps=2, lora_rank=2, lora_alpha=6, **QLORA)
    layer = module.policy.model.get_base_model().model.layers[0].mlp.down_proj
    b, a = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    expected = dequantized(layer.base_layer.weight) + 6 / 2 * b @ a
    merged = dict(merged_state_dict(module.policy.model))["model.layers.0.mlp.down_proj.weight"]
    torch.testing.assert_close(merged, expected.detach())


def test_a_merged_export_of_a_4_bit_run_is_a_plain_model_with_the_trained_logprobs(tiny_model_dir, tmp_path):
    module = fit(tiny_model_dir, tmp_path, max_steps=2, **QLORA)
    export(module, tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)
    assert not hasattr(loaded.config, "quantization_config")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = module.policy.model.eval()(ids).logits.log_softmax(-1)
        torch.testing.assert_close(loaded(ids).logits.log_softmax(-1), expected, rtol=0, atol=1e-4)
    assert (tmp_path / "export-adapter/base_identity.json").is_file()


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_weights_repacked_by_an_evaluation_pass_are_read_as_before(tiny_model_dir, tmp_path, double_quant, quant_type):
    base = four_bit_model(tiny_model_dir, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=double_quant)
    policy = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    for found, weights in (
        (merged_outlines(policy), merged_state_dict),
        (base_state_dict(policy, True), base_state_dict),
    ):
        outlines = {name: (tensor.device.type, tensor.dtype, tensor.shape) for name, tensor in found}
        assert outlines == {name: ("meta", tensor.dtype, tensor.shape) for name, tensor in weights(policy)}
    sources = (merged_state_dict, base_state_dict)  # what engines are sent, and what is exported
    expected = [{name: tensor.clone() for name, tensor in source(policy)} for source in sources]
    repack(policy)
    states = {id(p): p.quant_state for p in policy.parameters() if p.dtype == torch.uint8}
    assert len(states) == 14
    assert all(state.packing_format_for_cpu for state in states.values())
    packed = packed_weights(policy)
    for source, before in zip(sources, expected, strict=True):
        after = dict(source(policy))
        assert {name: tensor.dtype for name, tensor in after.items()} == dict.fromkeys(before, torch.float32)
        torch.testing.assert_close(after, before, rtol=2**-8, atol=2**-8)  # repacking rounds scales to bfloat16
    save_merged(policy, tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)
    torch.testing.assert_close(dict(loaded.named_parameters()), expected[0], rtol=2**-8, atol=2**-8)
    assert all(torch.equal(p, packed[name]) for name, p in packed_weights(policy).items())  # still in its layout
    assert all(p.quant_state.packing_format_for_cpu for p in policy.parameters() if p.dtype == torch.uint8)


def test_rollouts_and_evaluation_leave_the_policy_in_the_layout_that_can_be_trained(tiny_model_dir, tmp_path):
    module = fit(tiny_model_dir, tmp_path, max_steps=1, **QLORA)
    start = packed_weights(module.policy.model)
    with torch.no_grad():
        evaluated = module.policy.model.eval()(torch.arange(3, 40)[None]).logits
        torch.testing.assert_close(module.policy.model.train()(torch.arange(3, 40)[None]).logits, evaluated)
    assert all(torch.equal(p, start[name]) for name, p in packed_weights(module.policy.model).items())
    module.policy.model(torch.arange(3, 40)[None]).logits.sum().backward()


def test_a_checkpoint_of_a_4_bit_run_is_exported_on_a_cpu(tiny_model_dir, tmp_path):
    settings = {**QLORA, "sync_ref_model": False}
    module = run(tiny_model_dir, tmp_path, 2, **settings)
    config = {"model": {**QLORA, "model_name_or_path": str(tiny_model_dir), "max_completion_length": 8}}
    loaded = load_checkpoint(tmp_path / "step=2.ckpt", config)
    torch.testing.assert_close(
        dict(merged_state_dict(loaded.policy.model)), dict(merged_state_dict(module.policy.model)), rtol=0, atol=0
    )


@pytest.mark.slow
def test_no_kernel_is_recommended_that_training_does_not_use():
    program = "import grpo_lightning, bitsandbytes"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "gemm_4bit_forward" not in done.stderr + done.stdout  # from CPUs with AVX512-BF16


def test_a_resumed_4_bit_run_ends_bit_for_bit_where_a_whole_one_does(tiny_model_dir, tmp_path):
    settings = {**QLORA, "lora_dropout": 0.3, "sync_ref_model": False}
    whole = adapter_weights(run(tiny_model_dir, tmp_path, 4, **settings).policy.model)
    resumed = adapter_weights(run(tiny_model_dir, tmp_path, 4, resume_from=2, **settings).policy.model)
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
    stored = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["state_dict"]
    assert all("lora_" in name for name in stored)


def test_without_bitsandbytes_the_setting_is_refused_with_what_to_install(tiny_model_dir, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    with pytest.raises(ValueError, match=r"model.finetuning_type=qlora needs bitsandbytes.*grpo-lightning\[qlora\]"):
        make_module(tiny_model_dir, finetuning_type="qlora")


def test_a_device_that_bitsandbytes_does_not_know_is_refused():
    with pytest.raises(ValueError, match=r"bitsandbytes .* does not run on xla \(.*cuda"):
        FinetuningSettings(finetuning_type="qlora").quantized_loading(torch.device("xla"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"bnb_4bit_compute_dtype": "int4"},
            "model.bnb_4bit_compute_dtype='int4' is none of float32, bfloat16, float16",
        ),
        ({"bnb_4bit_quant_type": "int4"}, "model.bnb_4bit_quant_type='int4' is neither nf4 nor fp4"),
    ],
)
def test_unknown_4_bit_settings_are_refused(tiny_model_dir, settings, message):
    with pytest.raises(ValueError, match=message):
        make_module(tiny_model_dir, finetuning_type="qlora", **settings)
