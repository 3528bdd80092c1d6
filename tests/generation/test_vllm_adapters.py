"""Adapters, quantized bases and tied weights through real vLLM engines, one after the other in this process."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from four_bits import four_bit_model, repack
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from toy_models import save_toy_model
from vllm_cases import (
    PROMPTS,
    SEEDS,
    SETTINGS,
    ending_model,
    mismatch,
    needs_vllm,
    running,
    shift_weights,
)

from grpo_lightning.generation.vllm.engine.engine import ColocatedEngine
from grpo_lightning.generation.vllm.weights.adapter_route import TRIAL, AdapterRoute
from grpo_lightning.generation.vllm.weights.stream import WeightStream

pytestmark = needs_vllm

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"], "init_lora_weights": False}
FULL_SIZE = 0.461056  # megabytes of the toy model in float32


def lora_policy(**options):
    return get_peft_model(ending_model(), LoraConfig(**(LORA | options))).eval()


def four_bit_policy(directory):
    """In training mode: in evaluation bitsandbytes would repack the weights, see four_bits.repack."""
    return get_peft_model(four_bit_model(save_toy_model(directory)), LoraConfig(**LORA)).train()


def assert_follows(generator, policy, tolerance: float = 1e-4) -> dict[str, float]:
    """The engine is right, then stale after a step, then right again after an update."""
    assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < tolerance
    shift_weights(policy)
    assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) > 1.0
    metrics = generator.update_weights(policy)
    assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < tolerance
    return metrics


@pytest.fixture
def computes_with_its_parameters(monkeypatch):
    """As on a GPU: an engine on a CPU would compute with repacked copies of its weights."""
    monkeypatch.setattr("vllm._custom_ops._supports_onednn", False)
    monkeypatch.setattr(ColocatedEngine, "takes_weights_directly", lambda self: True)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("qwen2", {}), ("llama", {}), ("gemma2", {"attn_logit_softcapping": None})],  # without a head of its own in vLLM
)
def test_tied_weights_reach_the_output_head_too(architecture, options):
    policy = ending_model(architecture, tie_word_embeddings=True, **options)
    with running(policy) as generator:
        assert_follows(generator, policy)


def test_tokens_added_to_the_policy_are_in_the_engine():
    policy = ending_model()
    policy.resize_token_embeddings(333)
    with running(policy) as generator:
        assert_follows(generator, policy)


@pytest.mark.parametrize(("lora_sync", "megabytes"), [(None, 0.013312), ("merge", FULL_SIZE)])
def test_an_adapter_is_loaded_hot_or_merged_and_the_base_is_never_written_to(lora_sync, megabytes):
    policy = lora_policy()
    base = {name: p.clone() for name, p in policy.named_parameters() if not p.requires_grad}
    with running(policy, lora_sync=lora_sync) as generator:
        metrics = assert_follows(generator, policy)
    assert metrics["weight_sync/megabytes"] == pytest.approx(megabytes)
    for name, parameter in policy.named_parameters():
        assert name not in base or torch.equal(parameter, base[name])


def test_an_engine_never_writes_to_the_adapter_that_is_trained():
    policy = lora_policy().bfloat16()  # the dtype of the engine: nothing has to be converted
    with running(policy) as generator:
        for _ in range(2):
            shift_weights(policy)
            before = {name: p.clone() for name, p in policy.named_parameters()}
            generator.update_weights(policy)
            generator.generate(PROMPTS, SETTINGS, SEEDS)
            assert all(torch.equal(parameter, before[name]) for name, parameter in policy.named_parameters())


@pytest.mark.parametrize("cheaper", ["hot", "merge"])
def test_an_engine_whose_way_is_being_chosen_samples_from_the_policy_all_along(cheaper, monkeypatch):
    monkeypatch.setattr(AdapterRoute, "sampled", lambda self, *_: self._costs.update({self.way: self.way != cheaper}))
    policy, ways = lora_policy(), []
    with running(policy, lora_sync="auto") as generator:
        for _ in range(10):
            assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-3  # stale, above 1
            ways.append(generator.adapter_route.way)
            shift_weights(policy)
            generator.update_weights(policy)
    assert ways == [*TRIAL, cheaper, cheaper]


def test_an_adapter_whose_layers_have_scales_of_their_own_is_sampled_with_them():
    policy = lora_policy(alpha_pattern={"v_proj": 64}, rank_pattern={"up_proj": 2})
    with running(policy) as generator:
        assert_follows(generator, policy)


def assert_base_and_adapter_arrive(architecture):
    """At first, and again once the engine has lost its weights and the adapter with them."""
    base = ending_model(architecture, tie_word_embeddings=True)
    policy = get_peft_model(base, LoraConfig(**LORA)).eval()
    with running(policy, lora_sync="hot") as generator:
        assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-4
        policy.requires_grad_(True)
        shift_weights(policy)
        generator._weights.held = "nothing"
        generator.update_weights(policy)
        assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-4
        generator._engine.load_weights(WeightStream(policy, merge_adapters=False))
        assert not generator._engine.llm.llm_engine.list_loras()
        with policy.disable_adapter():
            assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-4


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_the_base_finds_its_way_past_adapters_on_projections_embeddings_and_tied_heads(architecture):
    assert_base_and_adapter_arrive(architecture)


@pytest.mark.usefixtures("computes_with_its_parameters")
@pytest.mark.parametrize("architecture", ["qwen2", "llama", "qwen3"])
def test_the_base_finds_its_way_past_adapters_straight_into_the_engines_parameters(architecture):
    assert_base_and_adapter_arrive(architecture)


def test_an_adapter_with_a_trained_head_is_merged():
    policy = lora_policy(modules_to_save=["lm_head"])
    with running(policy) as generator:
        assert_follows(generator, policy)
    with pytest.raises(ValueError, match=r"lora_sync=hot, but the adapter has modules_to_save.*lora_sync=merge"):
        running(policy, lora_sync="hot").__enter__()


@pytest.mark.parametrize("lora_sync", ["hot", "merge"])
def test_a_quantized_base_is_sent_as_the_numbers_that_training_computes_with(tmp_path, lora_sync):
    policy = four_bit_policy(tmp_path)
    with running(policy, lora_sync=lora_sync) as generator:
        assert_follows(generator, policy, tolerance=1e-3)


@pytest.mark.parametrize("lora_sync", ["hot", "merge"])
def test_a_base_that_bitsandbytes_has_repacked_is_sent_as_the_same_numbers(tmp_path, lora_sync):
    policy, repacked = four_bit_policy(tmp_path), four_bit_policy(tmp_path)
    set_peft_model_state_dict(repacked, get_peft_model_state_dict(policy))
    repack(repacked)
    with running(repacked, lora_sync=lora_sync) as generator:
        rollouts = generator.generate(PROMPTS, SETTINGS, SEEDS)
    assert mismatch(policy, rollouts) < 0.2  # repacking rounded the scales to bfloat16; unread, 12


def test_bfloat16_policies_are_sampled_in_bfloat16():
    policy = ending_model().bfloat16()
    with running(policy) as generator:
        rollouts = generator.generate(PROMPTS, SETTINGS, SEEDS)
    assert 1e-4 < mismatch(policy, rollouts) < 0.5
    assert mismatch(deepcopy(policy).float(), rollouts) > 1e-4
