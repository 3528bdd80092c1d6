"""Rollouts of several turns: tokens, masks, stops, faults, seeds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import worlds
from rollouts.turns.tool_models import Adder, Echo, Factory, Gate, Held, Opening, Scripted, tool_policy

from grpo_lightning.environments import EnvironmentFault
from grpo_lightning.environments.forms import open_episodes
from grpo_lightning.generation import SamplingSettings, TransformersGenerator
from grpo_lightning.rollouts.base import Moment
from grpo_lightning.rollouts.source import RolloutSettings
from grpo_lightning.rollouts.turns.settings import Turns
from grpo_lightning.rollouts.turns.source import EnvironmentsFailedError, TurnSource
from grpo_lightning.types import PromptBatch

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call><|im_end|>'


def turn_rewards(completions, turn_rewards, final_rewards, **columns):
    return [sum(of_one) + (final or 0.0) for of_one, final in zip(turn_rewards, final_rewards, strict=True)]


def length(completions, **columns):
    return [float(len(messages)) for messages in completions]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tool_policy(tmp_path_factory.mktemp("model"))


def make_source(policy, make_episode, generator=None, turns=None, rewards=(length,), has_tools=True, **sampling):
    settings = RolloutSettings(rewards=list(rewards), generator=generator or TransformersGenerator())
    how = SamplingSettings(**({"num_generations": 2, "max_completion_length": 120} | sampling))
    return TurnSource(settings, how, policy, 0, Factory(make_episode), turns or Turns(), has_tools)


def batch(*texts):
    prompts = [[{"role": "user", "content": text}] for text in texts]
    return PromptBatch(prompts, [[5, 6] for _ in texts], list(range(len(texts))))


def test_a_tool_call_is_answered_and_its_tokens_are_masked(policy):
    tokenizer = policy.tokenizer
    source = make_source(policy, lambda row: Adder(), Scripted(tokenizer, [CALL, "It is 5.<|im_end|>"]))
    sampled = source.sample(batch("2+3?"), Moment())
    rollouts, table = sampled.rollouts, sampled.await_rewards()
    said, given, last = (
        tokenizer(CALL)["input_ids"],
        tokenizer("\n<|im_start|>tool\n5<|im_end|>\n<|im_start|>assistant\n")["input_ids"],
        tokenizer("It is 5.<|im_end|>")["input_ids"],
    )
    assert rollouts.completions()[0].tolist() == said + given + last
    mask = [True] * len(said) + [False] * len(given) + [True] * len(last)
    assert rollouts.completion_mask.tolist() == mask * 2
    assert rollouts.logprob_lists()[0] == [-0.5 if own else 0.0 for own in mask]
    messages = rollouts.conversations[0].messages
    assert [message["role"] for message in messages] == ["assistant", "tool", "assistant"]
    assert messages[0]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 2, "b": 3}}
    assert (messages[1]["content"], messages[2]["content"]) == ("5", "It is 5.")
    assert rollouts.conversations[0].stop == "eos" and rollouts.conversations[0].calls == 1
    assert table.values.tolist() == [[3.0], [3.0]]
    prompt = tokenizer.apply_chat_template(
        batch("2+3?").prompts[0], tools=Adder().tools, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert rollouts.prompts()[0].tolist() == prompt
    source.close(0)


def test_sampled_logprobs_are_those_of_the_whole_history(policy):
    source = make_source(policy, lambda row: Echo(turns=3), turns=Turns(max_turn_length=9), max_completion_length=200)
    # Few turns of a random model end by themselves; those that do are answered.
    policy.model.lm_head.weight.data[policy.tokenizer.eos_token_id] *= 3
    rollouts = source.sample(batch("one", "two!", "three?"), Moment()).rollouts
    assert max(conversation.turns for conversation in rollouts.conversations) == 3
    for n, completion in enumerate(rollouts.completions()):
        prompt = rollouts.prompts()[int(rollouts.group[n])]
        with torch.no_grad():
            logits = policy.model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, completion[:, None])[:, 0]
        own = rollouts.completion_mask[rollouts.tokens_of(torch.tensor([n]))]
        found = rollouts.sampling_logprobs[rollouts.tokens_of(torch.tensor([n]))]
        torch.testing.assert_close(found[own], expected[own], atol=1e-5, rtol=1e-4)
    source.close(0)


def test_a_run_repeats_bit_for_bit_whatever_the_tools_take(policy):
    def play(seconds):
        pauses = iter(seconds)
        generator = TransformersGenerator(max_batch_size=4)
        source = make_source(
            policy,
            lambda row: Echo(seconds=next(pauses), turns=3),
            generator,
            Turns(max_turn_length=9),
            max_completion_length=200,
        )
        rollouts = source.sample(batch("one", "two!", "three?", "4"), Moment()).rollouts
        source.close(0)
        return rollouts

    quick, slow = play([0.0] * 8), play([0.05, 0.0, 0.02, 0.0, 0.0, 0.03, 0.0, 0.01])
    assert torch.equal(quick.completion_ids, slow.completion_ids)
    assert torch.equal(quick.sampling_logprobs, slow.sampling_logprobs)
    assert torch.equal(quick.completion_mask, slow.completion_mask)


def test_the_environment_ends_a_rollout_and_rewards_its_turns(policy):
    generator = Scripted(policy.tokenizer, ["a<|im_end|>", "b<|im_end|>", "c<|im_end|>"])
    source = make_source(policy, lambda row: Echo(turns=2), generator, rewards=[turn_rewards])
    sampled = source.sample(batch("play"), Moment())
    conversation = sampled.rollouts.conversations[0]
    assert (conversation.stop, conversation.rewards, conversation.final_reward) == ("done", [1.0, 2.0], 10.0)
    assert sampled.await_rewards().values.tolist() == [[13.0], [13.0]]
    source.close(0)


@pytest.mark.parametrize(
    ("turns", "limit", "stop", "count"),
    [
        (Turns(max_turns=2), 200, "max_turns", 2),
        (Turns(max_turn_length=2), 200, "max_tokens", 1),
        (Turns(), 30, "max_tokens", 1),
        (Turns(time_limit=1e-9), 200, "time", 1),
    ],
)
def test_budgets_stop_a_rollout(policy, turns, limit, stop, count):
    generator = Scripted(policy.tokenizer, ["some words<|im_end|>"] * 5)
    source = make_source(policy, lambda row: Echo(turns=99), generator, turns, max_completion_length=limit)
    rollouts = source.sample(batch("play"), Moment()).rollouts
    conversation = rollouts.conversations[0]
    assert (conversation.stop, conversation.turns) == (stop, count)
    assert rollouts.truncated.tolist() == [stop == "max_tokens"] * 2
    assert int(rollouts.completion_lengths.max()) <= limit
    source.close(0)


class Broken(Echo):
    """Fails at its second turn."""

    async def respond(self, text):
        if self.rewards:
            raise EnvironmentFault("the server is gone")
        return await super().respond(text)


class NoStart(Echo):
    async def reset(self, row):
        raise EnvironmentFault("no such level")


@pytest.mark.parametrize("kind", [Broken, NoStart])
def test_a_fault_costs_its_own_rollout_alone(policy, kind):
    kinds = iter([Echo, kind, Echo, Echo])
    generator = Scripted(policy.tokenizer, ["a<|im_end|>", "b<|im_end|>"])
    seen = []

    def counted(completions, **columns):
        seen.append(len(completions))
        return [1.0] * len(completions)

    source = make_source(policy, lambda row: next(kinds)(turns=2), generator, rewards=[counted])
    sampled = source.sample(batch("x", "y"), Moment())
    values = sampled.await_rewards().values[:, 0]
    assert [conversation.stop for conversation in sampled.rollouts.conversations] == ["done", "fault", "done", "done"]
    assert values.isnan().tolist() == [False, True, False, False]
    assert seen == [3]
    own = sampled.rollouts.tokens_of(torch.tensor([1]))
    assert not sampled.rollouts.completion_mask[own].any()
    source.close(0)


def test_a_run_whose_environments_all_fail_stops(policy):
    source = make_source(policy, lambda row: NoStart(), Scripted(policy.tokenizer, ["a<|im_end|>"]))
    with pytest.raises(EnvironmentsFailedError, match="no such level"):
        source.sample(batch("x"), Moment())
    source.close(0)


def test_an_unreadable_call_is_told_to_the_policy(policy):
    bad = '<tool_call>{"name": </tool_call><|im_end|>'
    source = make_source(policy, lambda row: Adder(), Scripted(policy.tokenizer, [bad, "sorry<|im_end|>"]))
    conversation = source.sample(batch("2+3?"), Moment()).rollouts.conversations[0]
    assert conversation.messages[1]["role"] == "tool"
    assert "not valid JSON" in conversation.messages[1]["content"]
    assert (conversation.calls, conversation.mistakes) == (1, 1)
    source.close(0)


def test_what_the_environment_says_to_one_rollout_alone_is_no_part_of_the_shared_prompt(policy):
    numbers = iter("78")

    class Opening(Echo):
        async def reset(self, row):
            return [{"role": "user", "content": f" secret {next(numbers)}"}]

    source = make_source(policy, lambda row: Opening(turns=1), Scripted(policy.tokenizer, ["a<|im_end|>"]))
    rollouts = source.sample(batch("x"), Moment()).rollouts
    texts = [policy.tokenizer.decode(torch.cat([rollouts.prompts()[0], ids])) for ids in rollouts.completions()]
    assert sorted(text.split("secret ")[1][0] for text in texts) == ["7", "8"]
    assert rollouts.completion_mask.sum().item() == 2 * len(policy.tokenizer("a<|im_end|>")["input_ids"])
    source.close(0)


def test_every_turn_of_every_rollout_has_a_seed_of_its_own_that_repeats(policy):
    def seeds():
        generator = Scripted(policy.tokenizer, ["a<|im_end|>", "b<|im_end|>"])
        source = make_source(policy, lambda row: Echo(turns=2), generator)
        source.sample(batch("x", "y"), Moment())
        source.close(0)
        return generator.seeds

    first = seeds()
    assert len(set(first)) == 8 and sorted(first) == sorted(seeds())


def test_more_rollouts_than_environments_are_played_so_many_at_a_time(policy):
    """In waves, those that wait for an environment would be waited for by those that have one."""
    script = Scripted(policy.tokenizer, ["1<|im_end|>", "2<|im_end|>"])
    make_episode = open_episodes(environment={"apart": worlds.GuessApart, "here": worlds.Guess})
    settings = RolloutSettings(rewards=[turn_rewards], generator=script)
    how = SamplingSettings(num_generations=2, max_completion_length=120)
    source = TurnSource(settings, how, policy, 0, make_episode, Turns(), has_tools=False)
    prompts = batch("one", "two", "three", "four")
    rows = replace(prompts, columns={"secret": [1, 2, 2, 1], "environment": ["apart", "apart", "here", "apart"]})
    sampled = source.sample(rows, Moment())
    turns = [conversation.turns for conversation in sampled.rollouts.conversations]
    scores = sampled.await_rewards().values.flatten().tolist()
    source.close(0)
    assert (turns, scores) == ([1, 1, 2, 2, 2, 2, 1, 1], [1.0] * 8)
    assert sampled.rollouts.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_slow_tool_holds_its_own_cohort_and_no_other(policy):
    gate, made = Gate(6), []

    def make(row):
        made.append(Held(turns=1, gate=gate) if len(made) == 0 else Opening(turns=3, gate=gate))
        return made[-1]

    script = Scripted(policy.tokenizer, ["a<|im_end|>", "b<|im_end|>", "c<|im_end|>"])
    script.max_batch_size = 2  # rollouts 0 and 1 are decoded together, 2 and 3 as well
    source = make_source(policy, make, script, max_completion_length=300)
    rollouts = source.sample(batch("one", "two"), Moment()).rollouts
    source.close(0)
    assert not gate.gave_up
    assert [conversation.turns for conversation in rollouts.conversations] == [1, 3, 3, 3]
