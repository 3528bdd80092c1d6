"""Forward passes with given experts, against routers written out beside them, one plain sequence at a time."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from architectures import build
from test_scorer import TEMPERATURE, assert_relatively_close, one_by_one, some_rollouts
from torch import Tensor, nn

from grpo_lightning.numerics.output_head import base_model
from grpo_lightning.numerics.routers import layers_with_routers, route_dtype, router_form
from grpo_lightning.rollouts.groups import join_rollouts, rollouts_of_state, rollouts_state, take_groups
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.types import Rollouts, RoutedExperts

ROWS = torch.arange(7)
RENORMALISE = {"qwen3_moe": False, "mixtral": True, "olmoe": False, "granitemoe": True, "gpt_oss": True}
UNKNOWN = 255


def with_random_experts(rollouts: Rollouts, layers: int = 2) -> Rollouts:
    """Two different ones of 4 for each token and layer; those of every completion's last token unknown."""
    generator = torch.Generator().manual_seed(3)
    tokens = rollouts.prompt_ids.numel() + rollouts.completion_ids.numel()
    experts = torch.rand(tokens, layers, 4, generator=generator).argsort(-1)[..., :2].to(torch.uint8)
    prompts, completions = experts.split([rollouts.prompt_ids.numel(), rollouts.completion_ids.numel()])
    completions = completions.clone()
    completions[rollouts.completion_lengths.cumsum(0) - 1] = UNKNOWN
    return replace(rollouts, routed_experts=RoutedExperts(prompts, completions))


@contextmanager
def forced(model: nn.Module, experts: Tensor, renormalise: bool):
    """Routers that give token t of layer n its ``experts[t, n]``, weighed by the softmax of their own logits."""
    form, hooks = router_form(model.config), []
    for n, (_, router) in enumerate(layers_with_routers(model, form)):

        def force(module, args, output, n=n):
            places = {form.logits: "logits", form.weights: "weights", form.experts: "experts"}
            answer = {places[i]: part for i, part in enumerate(output)}
            chosen = experts[:, n].long()
            chosen = torch.where(chosen == UNKNOWN, answer["experts"], chosen)
            weights = answer["logits"].double().exp().gather(1, chosen)
            whole = (
                weights.sum(1, keepdim=True) if renormalise else answer["logits"].double().exp().sum(1, keepdim=True)
            )
            answer |= {"experts": chosen, "weights": (weights / whole).to(answer["weights"].dtype)}
            return tuple(answer[places[i]] for i in range(3))

        hooks.append(router.register_forward_hook(force))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def forced_one_by_one(model: nn.Module, rollouts: Rollouts, renormalise: bool) -> Tensor:
    """The definition: (T,) logprobs of each unpadded sequence on its own, its experts forced."""
    routes = rollouts.routed_experts
    of_prompts = routes.prompts.split(rollouts.prompt_lengths.tolist())
    of_completions = routes.completions.split(rollouts.completion_lengths.tolist())
    logprobs = []
    for row in ROWS.tolist():
        experts = torch.cat([of_prompts[int(rollouts.group[row])], of_completions[row]])
        with forced(model, experts, renormalise):
            logprobs.append(one_by_one(model, rollouts, torch.tensor([row])).logprobs)
    return torch.cat(logprobs)


def gradient_of(model: nn.Module, logprobs: Tensor) -> Tensor:
    (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return flat


@pytest.mark.parametrize("name", list(RENORMALISE))
def test_given_experts_are_used_and_weighed_by_the_models_own_logits_in_every_layout(name):
    model, rollouts = build(name), with_random_experts(some_rollouts())
    expected = forced_one_by_one(model, rollouts, RENORMALISE[name])
    own = one_by_one(model, rollouts, ROWS).logprobs
    assert (expected - own).abs().max() > 0.1  # other experts make a difference
    expected_gradient = gradient_of(model, expected)
    for layout, share in (("packed", True), ("packed", False), ("padded", True)):
        scorer = Scorer(model, TEMPERATURE, layout, share_prompts=share)
        found = scorer.score(rollouts, ROWS).logprobs
        torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-4, atol=1e-4)
        assert_relatively_close(gradient_of(model, found), expected_gradient, 1e-3)
        without = scorer.score(replace(rollouts, routed_experts=None), ROWS).logprobs
        torch.testing.assert_close(without, own, rtol=1e-4, atol=1e-4)  # and nothing of the replay stays


def test_layers_that_are_computed_again_for_their_gradient_replay_the_same_experts():
    model, rollouts = build("mixtral").train(), with_random_experts(some_rollouts())
    scorer = Scorer(model, TEMPERATURE, "packed")
    expected = gradient_of(model, scorer.score(rollouts, ROWS).logprobs)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    logprobs = scorer.score(rollouts, ROWS).logprobs
    with torch.no_grad():  # another pass in between, with other experts
        scorer.score(replace(rollouts, routed_experts=None), ROWS)
    assert_relatively_close(gradient_of(model, logprobs), expected, 1e-5)


def test_what_cannot_be_replayed_is_refused_by_name():
    with pytest.raises(ValueError, match="llama has no routers"):
        router_form(build("llama").config)
    with pytest.raises(ValueError, match="deepseek_v3 "):
        router_form(build("deepseek_v3").config)


def test_numbers_of_experts_take_a_byte_while_a_value_is_left_for_unknown():
    assert (route_dtype(254), route_dtype(255), route_dtype(256)) == (torch.uint8, torch.int16, torch.int16)


def test_groups_taken_out_put_together_and_saved_keep_the_experts_of_their_tokens():
    rollouts = with_random_experts(some_rollouts())
    rows = [torch.tensor([3]), torch.tensor([0, 2, 5, 6])]
    taken = take_groups(rollouts, [2, 0], rows)
    routes = rollouts.routed_experts
    of_prompts = routes.prompts.split([6, 3, 1])
    assert torch.equal(taken.routed_experts.prompts, torch.cat([of_prompts[2], of_prompts[0]]))
    assert torch.equal(taken.routed_experts.completions, routes.completions[rollouts.tokens_of(torch.cat(rows))])
    joined = join_rollouts([taken, rollouts])
    assert torch.equal(joined.routed_experts.completions[-38:], routes.completions)
    assert torch.equal(joined.routed_experts.prompts[:7], taken.routed_experts.prompts)
    restored = rollouts_of_state(rollouts_state(joined))
    assert torch.equal(restored.routed_experts.prompts, joined.routed_experts.prompts)
    assert restored.routed_experts.completions.dtype == torch.uint8
    assert rollouts_of_state(rollouts_state(some_rollouts())).routed_experts is None
    assert join_rollouts([some_rollouts(), rollouts]).routed_experts is None  # a part without


def test_routers_under_adapters_are_found():
    from peft import LoraConfig, get_peft_model

    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    plain, rollouts = build("qwen3_moe"), with_random_experts(some_rollouts())
    expected = Scorer(plain, TEMPERATURE).score(rollouts, ROWS).logprobs.detach()
    adapted = get_peft_model(build("qwen3_moe"), LoraConfig(r=2, target_modules=["q_proj"], target_parameters=targets))
    base_model(adapted).eval()
    found = Scorer(adapted, TEMPERATURE).score(rollouts, ROWS).logprobs
    torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-4)
