"""Mixtures of experts in an engine, colocated or a server: it computes with the weights that it was sent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from ports import free_port
from transformers import PreTrainedModel
from vllm_cases import (
    PROMPTS,
    SEEDS,
    SETTINGS,
    SMALL_SERVER,
    TOKENIZER,
    eager_torch,
    ending_model,
    mismatch,
    needs_vllm,
    running,
    shift_weights,
    small_engine,
)

from grpo_lightning.generation import Generator, VLLMColocate, VLLMServer
from grpo_lightning.generation.vllm.compat import why_no_routed_experts
from grpo_lightning.generation.vllm.serving.nccl_transfer import goes_by_nccl
from grpo_lightning.numerics.routers import recorded_routes, router_form

pytestmark = needs_vllm


PADDED = {"moe_intermediate_size": 16}
"""A size that vLLM's kernel for a CPU pads to 32."""
MIXTURES: list[tuple[str, dict[str, Any]]] = [("qwen3_moe", {}), ("qwen3_moe", PADDED), ("gpt_oss", {})]


def assert_follows(generator: Generator, policy: PreTrainedModel) -> None:
    """What is sampled from is the policy, also after an update of all its weights."""
    for _ in range(2):
        generator.update_weights(policy)
        assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-4
        shift_weights(policy)


@pytest.mark.parametrize(("architecture", "sizes"), MIXTURES)
def test_experts_are_those_of_the_policy_after_every_update(architecture, sizes):
    policy = ending_model(architecture, **sizes)
    with running(policy) as generator:
        assert_follows(generator, policy)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_servers")
@pytest.mark.parametrize(("architecture", "sizes"), [*MIXTURES[1:], ("lfm2_moe", {})])  # the last with convolutions
def test_a_server_samples_with_the_experts_that_it_was_sent(architecture, sizes):
    policy = ending_model(architecture, **sizes)
    generator = VLLMServer(port=free_port(), launch=True, launch_arguments=SMALL_SERVER, max_model_length=256)
    with eager_torch():
        generator.start(policy, TOKENIZER, "toy")
        try:
            assert_follows(generator, policy)
        finally:
            generator.stop()


ADAPTED = ["q_proj", "v_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize("architecture", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("parameters", [None, EXPERTS])
def test_adapters_of_a_mixture_on_a_cpu_are_merged_into_what_is_sent(architecture, parameters):
    lora = LoraConfig(r=4, target_modules=ADAPTED, target_parameters=parameters, init_lora_weights=False)
    policy = get_peft_model(ending_model(architecture), lora).eval()
    with running(policy) as generator:
        assert generator.adapter_route.way == "merge"
        assert_follows(generator, policy)


@pytest.mark.parametrize(("kind", "settings"), [(VLLMColocate, {}), (VLLMServer, {"launch": True})])
def test_an_engine_on_a_cpu_that_is_to_add_adapters_to_a_mixture_is_refused_by_name(kind, settings):
    policy = get_peft_model(ending_model("gpt_oss"), LoraConfig(r=4, target_modules=ADAPTED))
    with pytest.raises(
        ValueError, match=r"lora_sync=hot, but vLLM adds no adapters to a mixture.* on a CPU. Use lora_sync=merge"
    ):
        kind(lora_sync="hot", **settings).start(policy, TOKENIZER, "toy")


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
