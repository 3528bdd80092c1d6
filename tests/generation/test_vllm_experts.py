"""Mixtures of experts in a colocated engine: it computes with the weights that it was sent."""

from __future__ import annotations

import pytest
import torch
from vllm_cases import (
    PROMPTS,
    SEEDS,
    SETTINGS,
    TOKENIZER,
    eager_torch,
    ending_model,
    mismatch,
    needs_vllm,
    running,
    shift_weights,
    small_engine,
)

from grpo_lightning.generation.vllm.compat import why_no_routed_experts
from grpo_lightning.generation.vllm.server_weights import goes_by_nccl
from grpo_lightning.numerics.routers import recorded_routes, router_form

pytestmark = needs_vllm


@pytest.mark.parametrize("architecture", ["qwen3_moe", "gpt_oss"])
def test_experts_are_those_of_the_policy_after_every_update(architecture):
    policy = ending_model(architecture)
    with running(policy) as generator:
        assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-4
        shift_weights(policy)
        generator.update_weights(policy)
        assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-4


def test_weights_that_a_server_would_lose_over_nccl_are_refused_by_name():
    policy = ending_model("gpt_oss")
    with pytest.raises(ValueError, match=r"weight_transfer=nccl: .* loses experts of GptOssForCausalLM. Set .*=files"):
        goes_by_nccl("nccl", policy)
    assert not goes_by_nccl("files", policy) and not goes_by_nccl("auto", policy)
    assert goes_by_nccl("nccl", ending_model("qwen3_moe"))


@pytest.mark.skipif(why_no_routed_experts() is None, reason="this vLLM tells them")
def test_an_engine_that_does_not_tell_experts_is_refused_by_name():
    with pytest.raises(ValueError, match=r"router_replay=true: vLLM .* which experts each token is given"):
        small_engine().record_routed_experts(ending_model("qwen3_moe").config)


@pytest.mark.gpu
@pytest.mark.skipif(why_no_routed_experts() is not None, reason=f"needs routed experts: {why_no_routed_experts()}")
def test_the_engine_tells_the_experts_of_every_token_that_it_read():
    policy = ending_model("qwen3_moe").eval().cuda()
    form = router_form(policy.config)
    generator = small_engine()
    generator.record_routed_experts(policy.config)
    with eager_torch():
        generator.start(policy, TOKENIZER, "toy")
        try:
            generator.update_weights(policy)
            rollouts = generator.generate(PROMPTS, SETTINGS, SEEDS)
        finally:
            generator.stop()
    of_prompts = rollouts.routed_experts.prompts.split(rollouts.prompt_lengths.tolist())
    of_completions = rollouts.routed_experts.completions.split(rollouts.completion_lengths.tolist())
    with torch.no_grad(), recorded_routes(policy, form) as recorder:
        for n, completion in enumerate(rollouts.completions()):
            group = int(rollouts.group[n])
            policy(input_ids=torch.tensor([[*PROMPTS[group], *completion.tolist()]], device=policy.device))
            expected = recorder.take().cpu().sort(-1).values
            found = torch.cat([of_prompts[group], of_completions[n]]).sort(-1).values
            assert (found[:-1] == expected[:-1]).double().mean() > 0.99  # a near tie may fall either way
            assert bool((found[-1] == 255).all())
