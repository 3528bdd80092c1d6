"""model.router_replay: the sampler's experts are recorded, replayed in training, and told apart from the trainer's own."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from runs import fit, make_module, weights
from toy_models import build_model, build_tokenizer, save_toy_model

from grpo_lightning.generation import SamplingSettings, TransformersGenerator, VLLMServer
from grpo_lightning.numerics.routers import layers_with_routers, router_form
from grpo_lightning.policy.policy import Policy
from grpo_lightning.policy.settings import PolicySettings
from grpo_lightning.rollouts.partial_rollouts import PartialRollouts
from grpo_lightning.training.passes import Passes, PassSettings
from grpo_lightning.training.router_replay import replay_gaps

PROMPTS = [[40, 41, 42, 43, 44], [50], [60, 61, 62]]
UNKNOWN = 255


@pytest.fixture(scope="module")
def experts_dir(tmp_path_factory):
    return save_toy_model(tmp_path_factory.mktemp("experts"), "qwen3_moe", router_aux_loss_coef=0.0)


def sampled(policy, **settings):
    generator = TransformersGenerator(**settings)
    generator.record_routed_experts(policy.config)
    generator.start(policy, build_tokenizer(), "toy")
    return generator.generate(PROMPTS, SamplingSettings(num_generations=3, max_completion_length=12), [1, 2, 3])


@torch.no_grad()
def own_experts(policy, ids):
    """(tokens, L, k) of a plain pass over one sequence, sorted."""
    chosen, form = {}, router_form(policy.config)
    layers = layers_with_routers(policy, form)
    hooks = [
        router.register_forward_hook(lambda m, a, output, n=n: chosen.update({n: output[form.experts]}))
        for n, (_, router) in enumerate(layers)
    ]
    policy(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return torch.stack([chosen[n] for n in range(len(layers))], 1).sort(-1).values


@pytest.mark.parametrize("settings", [{}, {"max_batch_size": 3}])
def test_the_generator_records_what_its_routers_chose_for_every_token_it_read(settings):
    policy = build_model("qwen3_moe").eval()
    rollouts = sampled(policy, **settings)
    assert len({*rollouts.completion_lengths.tolist()}) > 1 or settings
    of_prompts = rollouts.routed_experts.prompts.split(rollouts.prompt_lengths.tolist())
    of_completions = rollouts.routed_experts.completions.split(rollouts.completion_lengths.tolist())
    for n, completion in enumerate(rollouts.completions()):
        prompt = PROMPTS[n // 3]
        expected = own_experts(policy, prompt + completion.tolist())
        assert torch.equal(of_prompts[n // 3].long().sort(-1).values, expected[: len(prompt)])
        assert torch.equal(of_completions[n][:-1].long().sort(-1).values, expected[len(prompt) : -1])
        assert bool((of_completions[n][-1] == UNKNOWN).all())  # sampled, never read


def test_the_gap_to_a_sampler_with_other_routers_is_smaller_with_its_experts(experts_dir):
    policy = Policy(PolicySettings(model_name_or_path=str(experts_dir)), 0)
    policy.load()
    passes = Passes(PassSettings(max_tokens_per_microbatch=4096), policy)
    form, generator = router_form(policy.model.config), torch.Generator().manual_seed(5)
    routers = [router for _, router in layers_with_routers(policy.model, form)]
    before = [router.weight.detach().clone() for router in routers]
    with torch.no_grad():
        for router in routers:  # the sampler rounds otherwise, much enlarged
            router.weight.add_(1e-2 * torch.randn(router.weight.shape, generator=generator))
    rollouts = sampled(policy.model)
    with torch.no_grad():
        for router, weight in zip(routers, before, strict=True):
            router.weight.copy_(weight)
    gaps = replay_gaps(passes, rollouts)
    replayed = gaps["router_replay/logprob_gap"].mean()
    assert len(gaps["router_replay/logprob_gap"]) == rollouts.completion_ids.numel()
    assert 0 < replayed < 0.5 * gaps["router_replay/logprob_gap_without_replay"].mean()


def test_a_run_logs_both_gaps_and_trains_with_adapters_on_experts(experts_dir, tmp_path):
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapter = LoraConfig(r=2, lora_dropout=0.0, target_modules=["q_proj"], target_parameters=targets)
    settings = {"finetuning_type": "lora", "peft_config": adapter, "beta": 0.1, "num_iterations": 2}
    module = fit(experts_dir, tmp_path, max_steps=4, router_replay=True, max_tokens_per_microbatch=40, **settings)
    assert module.step_metrics["router_replay/logprob_gap"] < 1e-5
    assert module.step_metrics["router_replay/logprob_gap_without_replay"] < 1e-5  # one sampler, one arithmetic
    without = fit(experts_dir, tmp_path, max_steps=4, max_tokens_per_microbatch=40, **settings)
    assert not any("router_replay" in name for name in without.step_metrics)
    assert module.step_metrics["loss"] == pytest.approx(without.step_metrics["loss"], rel=1e-3, abs=1e-5)


def test_a_step_with_replay_trains_the_same_under_any_split(experts_dir, tmp_path):
    def trained(**settings):
        module = fit(experts_dir, tmp_path, router_replay=True, **settings)
        return torch.cat([weight.flatten() for weight in weights(module).values()])

    expected = trained(microbatch_layout="padded", max_tokens_per_microbatch=4096)
    for layout, budget in (("packed", 40), ("padded", 150)):
        torch.testing.assert_close(trained(microbatch_layout=layout, max_tokens_per_microbatch=budget), expected)


def test_the_form_of_gate_weights_is_found_whether_they_are_renormalised_or_not():
    for renormalises in (True, False):
        config = build_model("qwen3_moe", norm_topk_prob=renormalises).config
        assert router_form(config).renormalises == renormalises


def test_what_cannot_be_replayed_is_refused_before_weights_load(experts_dir, tiny_model_dir):
    with pytest.raises(ValueError, match="router_replay=true is not possible: qwen2 has no routers"):
        make_module(tiny_model_dir, router_replay=True)
    with pytest.raises(ValueError, match="VLLMServer does not give them"):
        make_module(experts_dir, router_replay=True, generator=VLLMServer())
    with pytest.raises(ValueError, match="partial_rollouts puts completions together from parts"):
        make_module(experts_dir, router_replay=True, partial_rollouts=PartialRollouts(carry_over=0.5))
