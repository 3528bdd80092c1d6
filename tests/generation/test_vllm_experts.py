"""Mixtures of experts in a colocated engine: it computes with the weights that it was sent."""

from __future__ import annotations

from vllm_cases import PROMPTS, SEEDS, SETTINGS, ending_model, mismatch, needs_vllm, running, shift_weights

pytestmark = needs_vllm


def test_experts_are_those_of_the_policy_after_every_update():
    policy = ending_model("qwen3_moe")
    with running(policy) as generator:
        assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-4
        shift_weights(policy)
        generator.update_weights(policy)
        assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-4
