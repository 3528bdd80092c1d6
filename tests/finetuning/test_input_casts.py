"""LoRA layers under autocast take their input as it is, and give the numbers that peft's own casts give."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from runs import fit
from toy_models import build_model

from grpo_lightning.finetuning.input_casts import leave_casts_to_autocast

LAYER = "base_model.model.model.layers.0.mlp.up_proj"


def mixed_policy(**options):
    """A bfloat16 base with a float32 adapter that does something, as trainer.precision=bf16-mixed has it."""
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False, **options)
    policy = get_peft_model(build_model().bfloat16(), config)
    assert policy.get_submodule(LAYER).lora_A.default.weight.dtype == torch.float32
    return policy


def outcome(policy, is_mixed=True):
    """Logits and gradients, and the dtypes in which a LoRA matrix saw its input."""
    seen = []
    matrix = policy.get_submodule(LAYER).lora_A.default
    handle = matrix.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
        logits = policy(input_ids=torch.arange(40)[None]).logits
    logits.float().log_softmax(-1)[0, :, 7].sum().backward()
    handle.remove()
    return logits, [p.grad for p in policy.parameters() if p.requires_grad], seen


def assert_same(found, expected):
    assert torch.equal(found[0], expected[0])
    assert found[1]
    assert all(torch.equal(*pair) for pair in zip(found[1], expected[1], strict=True))


def test_the_input_is_not_copied_and_no_number_changes():
    plain = mixed_policy()
    spared = copy.deepcopy(plain)
    leave_casts_to_autocast(spared)
    found, expected = outcome(spared), outcome(plain)
    assert (found[2], expected[2]) == ([torch.bfloat16], [torch.float32])
    assert_same(found, expected)


def test_outside_autocast_peft_casts_as_before():
    plain = mixed_policy()
    spared = copy.deepcopy(plain)
    leave_casts_to_autocast(spared)
    found, expected = outcome(spared, is_mixed=False), outcome(plain, is_mixed=False)
    assert found[2] == expected[2] == [torch.float32]
    assert_same(found, expected)


def test_a_copy_of_a_layer_casts_for_itself():
    policy = mixed_policy()
    leave_casts_to_autocast(policy)
    copied = copy.deepcopy(policy)
    assert copied.get_submodule(LAYER)._cast_input_dtype.args[0].__self__ is copied.get_submodule(LAYER)
    assert_same(outcome(copied), outcome(policy))


def test_dora_keeps_its_casts():
    policy = mixed_policy(use_dora=True)
    leave_casts_to_autocast(policy)
    assert outcome(policy)[2].count(torch.float32) == len(outcome(policy)[2])


@pytest.mark.parametrize(("precision", "is_spared"), [("bf16-mixed", True), ("32-true", False)])
def test_training_does_so_in_mixed_precision(tiny_model_dir, tmp_path, precision, is_spared):
    options = {"finetuning_type": "lora", "trainer": {"precision": precision}}
    module = fit(tiny_model_dir, tmp_path, max_steps=2, **options)
    assert ("_cast_input_dtype" in vars(module.policy.get_submodule(LAYER))) == is_spared
    assert module.steps_done == 2
