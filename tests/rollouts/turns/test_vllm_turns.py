"""Turns in a vLLM engine of this process, between the steps of which requests come in."""

from __future__ import annotations

import pytest
import torch
from rollouts.turns.test_turn_source import batch, make_source
from rollouts.turns.tool_models import Echo, Gate, Held, Opening, tool_tokenizer
from vllm_cases import eager_torch, ending_model, needs_vllm, small_engine

from grpo_lightning.policy.policy import Policy
from grpo_lightning.policy.settings import PolicySettings
from grpo_lightning.rollouts.base import Moment
from grpo_lightning.rollouts.turns.settings import Turns

pytestmark = needs_vllm


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = ending_model()
    model.save_pretrained(folder)
    tool_tokenizer().save_pretrained(folder)
    policy = Policy(PolicySettings(model_name_or_path=str(folder)), 0)
    policy.model = model
    return policy


@pytest.fixture(scope="module")
def engine():
    with eager_torch():
        generator = small_engine()
        yield generator
        generator.stop()


def play(policy, engine, pauses):
    left = iter(pauses)
    source = make_source(
        policy,
        lambda row: Echo(seconds=next(left), turns=3),
        engine,
        Turns(max_turn_length=30),
        max_completion_length=150,
    )
    source.prepare()
    rollouts = source.sample(batch("one", "two!", "three?"), Moment()).rollouts
    source.reward_runner.close()
    return rollouts


def test_logprobs_of_the_engine_are_those_of_the_whole_history(policy, engine):
    rollouts = play(policy, engine, [0.0, 0.02] * 3)
    assert max(conversation.turns for conversation in rollouts.conversations) == 3
    for n, completion in enumerate(rollouts.completions()):
        prompt = rollouts.prompts()[int(rollouts.group[n])]
        with torch.no_grad():
            logits = policy.model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, completion[:, None])[:, 0]
        places = rollouts.tokens_of(torch.tensor([n]))
        own = rollouts.completion_mask[places]
        torch.testing.assert_close(rollouts.sampling_logprobs[places][own], expected[own], atol=1e-4, rtol=1e-3)


def test_the_same_tokens_whatever_the_tools_take(policy, engine):
    quick, slow = play(policy, engine, [0.0] * 6), play(policy, engine, [0.05, 0.0, 0.03, 0.0, 0.01, 0.0])
    assert torch.equal(quick.completion_ids, slow.completion_ids)
    torch.testing.assert_close(quick.sampling_logprobs, slow.sampling_logprobs, atol=1e-5, rtol=1e-4)


def test_one_slow_tool_keeps_no_other_rollout_from_its_next_turns(policy, engine):
    gate, made = Gate(7), []  # the five others have five first turns

    def make(row):
        made.append(Opening(turns=3, gate=gate) if made else Held(turns=1, gate=gate))
        return made[-1]

    sampling = {"max_completion_length": 150, "num_generations": 3}
    source = make_source(policy, make, engine, Turns(max_turn_length=30), **sampling)
    source.prepare()
    rollouts = source.sample(batch("one", "two!"), Moment()).rollouts
    source.reward_runner.close()
    assert gate.is_open.is_set() and not gate.gave_up
    assert max(conversation.turns for conversation in rollouts.conversations) == 3
    assert len(made[0].rewards) == 1  # it was held, and went on
