"""Adapters, quantized bases and tied weights through real vLLM engines, one after the other in this process."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig
from vllm_cases import (
    PROMPTS,
    SEEDS,
    SETTINGS,
    ending_model,
    loaded_model,
    mismatch,
    needs_vllm,
    running,
    shift_weights,
)

pytestmark = needs_vllm

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"], "init_lora_weights": False}
FULL_SIZE = 0.461056  # megabytes of the toy model in float32


def lora_policy(**options):
    return get_peft_model(ending_model(), LoraConfig(**(LORA | options))).eval()


def assert_follows(generator, policy, tolerance: float = 1e-4) -> dict[str, float]:
    """The engine is right, then stale after a step, then right again after an update."""
    assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < tolerance
    shift_weights(policy)
    assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) > 1.0
    metrics = generator.update_weights(policy)
    assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < tolerance
    return metrics


def test_tied_weights_reach_the_output_head_too():
    policy = ending_model(tie_word_embeddings=True)
    with running(policy) as generator:
        assert_follows(generator, policy)


def test_tokens_added_to_the_policy_are_in_the_engine():
    policy = ending_model()
    policy.resize_token_embeddings(333)
    with running(policy) as generator:
        assert_follows(generator, policy)


@pytest.mark.parametrize(("lora_sync", "megabytes"), [("auto", 0.013312), ("merge", FULL_SIZE)])
def test_an_adapter_is_loaded_hot_or_merged_and_the_base_is_never_written_to(lora_sync, megabytes):
    policy = lora_policy()
    base = {name: p.clone() for name, p in policy.named_parameters() if not p.requires_grad}
    with running(policy, lora_sync=lora_sync) as generator:
        metrics = assert_follows(generator, policy)
    assert metrics["weight_sync/megabytes"] == pytest.approx(megabytes)
    for name, parameter in policy.named_parameters():
        assert name not in base or torch.equal(parameter, base[name])


def test_an_adapter_with_a_trained_head_is_merged():
    policy = lora_policy(modules_to_save=["lm_head"])
    with running(policy) as generator:
        assert_follows(generator, policy)
    with pytest.raises(ValueError, match=r"lora_sync=hot, but the adapter has modules_to_save.*lora_sync=merge"):
        running(policy, lora_sync="hot").__enter__()


@pytest.mark.parametrize("lora_sync", ["auto", "merge"])
def test_a_quantized_base_is_sent_as_the_numbers_that_training_computes_with(tmp_path, lora_sync):
    pytest.importorskip("bitsandbytes")
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    four_bits.bnb_4bit_compute_dtype = torch.float32
    base = loaded_model(tmp_path, quantization_config=four_bits, dtype=torch.float32)
    policy = get_peft_model(base, LoraConfig(**LORA)).train()  # bitsandbytes repacks weights in evaluation on a CPU
    with running(policy, lora_sync=lora_sync) as generator:
        assert_follows(generator, policy, tolerance=1e-3)


def test_bfloat16_policies_are_sampled_in_bfloat16():
    policy = ending_model().bfloat16()
    with running(policy) as generator:
        rollouts = generator.generate(PROMPTS, SETTINGS, SEEDS)
    assert 1e-4 < mismatch(policy, rollouts) < 0.5
    assert mismatch(deepcopy(policy).float(), rollouts) > 1e-4
