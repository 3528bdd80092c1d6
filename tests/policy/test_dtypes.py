"""What the policy is held in under each precision: weights as asked for, the rest as its model keeps it."""

from __future__ import annotations

import pytest
import torch
from runs import fit
from toy_models import build_model, save_toy_model
from transformers import AutoModelForCausalLM

from grpo_lightning.policy.dtypes import cast_weights
from grpo_lightning.policy.reference import make_reference

IDS = torch.randint(3, 300, (1, 400), generator=torch.Generator().manual_seed(0))
LORA = {"finetuning_type": "lora", "lora_dropout": 0.0}
HALF_PRECISIONS = {"bf16-true": torch.bfloat16, "16-true": torch.float16}


def unchanged(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def rotary(model):
    return {name.rpartition("rotary_emb.")[2]: b for name, b in model.named_buffers() if "rotary_emb" in name}


@pytest.mark.parametrize("settings", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("precision", HALF_PRECISIONS)
def test_half_precision_leaves_rotary_frequencies_as_transformers_has_them(
    tiny_model_dir, tmp_path, precision, settings
):
    """Lightning casts the whole module: rounded, the frequencies of Qwen2.5 turned the 1,000th token by up to 1.15 rad too much."""
    module = fit(tiny_model_dir, tmp_path, trainer={"precision": precision}, optimizer=unchanged, **settings)
    expected = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=HALF_PRECISIONS[precision])
    found = rotary(module.policy.model)
    assert found.keys() == rotary(expected).keys() != set()
    for name, frequencies in rotary(expected).items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], frequencies)
    dtypes = {p.dtype for p in module.policy.model.parameters() if not p.requires_grad or not settings}
    assert dtypes == {HALF_PRECISIONS[precision]}


def test_the_policy_in_bfloat16_is_the_model_that_transformers_loads_in_bfloat16(tiny_model_dir, tmp_path):
    module = fit(tiny_model_dir, tmp_path, trainer={"precision": "bf16-true"}, optimizer=unchanged)
    expected = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16)
    module.policy.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        assert torch.equal(module.policy.model.eval()(IDS).logits, expected.eval()(IDS).logits)


@pytest.mark.parametrize(
    ("precision", "base", "adapter"),
    [
        ("bf16-true", torch.bfloat16, torch.float32),
        ("bf16-mixed", torch.bfloat16, torch.float32),
        ("32-true", torch.float32, torch.float32),
    ],
)
def test_adapters_are_held_in_float32_whatever_the_base_is_held_in(tiny_model_dir, tmp_path, precision, base, adapter):
    module = fit(tiny_model_dir, tmp_path, trainer={"precision": precision}, **LORA)
    dtypes = {p.requires_grad: p.dtype for p in module.policy.model.parameters()}
    assert dtypes == {True: adapter, False: base}


def test_weights_in_a_dtype_of_their_own_are_what_training_runs_on(tiny_model_dir, tmp_path):
    """model.dtype was overruled by Lightning's cast, without a word."""
    module = fit(tiny_model_dir, tmp_path, trainer={"precision": "bf16-true"}, dtype="float32")
    assert {parameter.dtype for parameter in module.policy.model.parameters()} == {torch.float32}


def test_moving_the_module_moves_the_policy_too(tiny_model_dir, tmp_path):
    module = fit(tiny_model_dir, tmp_path)
    module.to("meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in module.policy.model.parameters()} == {("meta", torch.float32)}
    assert module.dtype == torch.bfloat16


def test_a_reference_in_bfloat16_keeps_its_rotary_frequencies():
    policy = build_model()
    reference = make_reference(policy, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in reference.model.parameters()} == {torch.bfloat16}
    for name, frequencies in rotary(policy).items():
        assert torch.equal(rotary(reference.model)[name], frequencies)


def test_casting_weights_keeps_tied_ones_tied_and_what_the_model_names_in_float32(tmp_path):
    save_toy_model(tmp_path, architecture="gemma2")
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    model._keep_in_fp32_modules_strict = {"post_attention_layernorm"}
    cast_weights(model, torch.bfloat16)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    kept = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    assert kept == {f"model.layers.{n}.post_attention_layernorm.weight" for n in range(2)}
