"""Histories that the chat template writes anew: what is sampled behind them is scored behind them, and counts once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rollouts.turns.test_turn_source import batch, make_source
from rollouts.turns.tool_models import Echo, Scripted, tool_tokenizer
from toy_models import build_model

from grpo_lightning.generation.turns import SampledTurn
from grpo_lightning.policy.policy import Policy
from grpo_lightning.policy.settings import PolicySettings
from grpo_lightning.rollouts.base import Moment
from grpo_lightning.rollouts.groups import join_rollouts, rollouts_of_state, rollouts_state, take_groups
from grpo_lightning.rollouts.turns.settings import Turns
from grpo_lightning.rollouts.turns.token_trail import TokenTrail
from grpo_lightning.scoring import Scorer
from grpo_lightning.scoring.branches import planned_lengths

FORGETS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and not loop.last %}{{ message['content'].split('~')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Leaves out what an earlier turn thought, before ~."""
OPENS_THOUGHT = FORGETS.replace("assistant\n{% endif %}", "assistant\n~~{% endif %}")
"""Opens each turn with a thought that later is not there either."""


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("model"), tool_tokenizer()
    tokenizer.chat_template = FORGETS
    build_model(tokenizer=tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    policy = Policy(PolicySettings(model_name_or_path=str(folder)), 0)
    policy.model = build_model(tokenizer=tokenizer, max_position_embeddings=1024).eval()
    return policy


def played(policy, said, template=FORGETS, history="as_template", **options):
    policy.tokenizer.chat_template = template
    source = make_source(
        policy,
        lambda row: Echo(turns=3),
        Scripted(policy.tokenizer, said),
        Turns(max_turns=3, history=history),
        has_tools=False,
        **({"max_completion_length": 400} | options),
    )
    rollouts = source.sample(batch("one", "two"), Moment()).rollouts
    source.close(0)
    return rollouts


SAID = ["hm~a<|im_end|>", "b<|im_end|>", "so~c<|im_end|>"]


def test_a_turn_that_the_template_keeps_is_appended_to_and_another_begins_a_history(policy):
    rollouts = played(policy, SAID)
    tokens = policy.tokenizer
    conversation, completion = rollouts.conversations[0], rollouts.completions()[0].tolist()
    heard = [message["content"] for message in conversation.messages if message["role"] == "user"]
    prompt = "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
    assert tokens.decode(rollouts.prompts()[0]) == prompt
    kept, first = conversation.branches[0]
    assert tokens.decode(completion[:first]) == "hm~a<|im_end|>"
    # "hm~" is forgotten before the second turn; "b" thought nothing, so the third turn follows it.
    (again, second) = conversation.branches[1]
    assert (kept, again, first + second) == (len(rollouts.prompts()[0]), kept, len(completion))
    ask = "\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    expected = f"a<|im_end|>{ask.format(heard[0])}b<|im_end|>{ask.format(heard[1])}so~c<|im_end|>"
    assert tokens.decode(completion[first:]) == expected
    own = tokens.decode(rollouts.completions()[0][rollouts.completion_mask[: len(completion)]])
    assert own == "".join(SAID)  # each turn is trained on once
    assert len(conversation.branches) == 2


def test_appended_histories_have_no_branches(policy):
    assert [each.branches for each in played(policy, SAID, history="append").conversations] == [[]] * 4


def test_a_history_may_begin_with_a_part_of_the_prompt_only(policy):
    rollouts = played(policy, SAID, OPENS_THOUGHT)
    (whole, _), (part, _), *_ = rollouts.conversations[0].branches
    opened = policy.tokenizer("~~")["input_ids"]
    assert part == whole - len(opened)
    assert rollouts.prompts()[0][part:].tolist() == opened


def sequences(rollouts):
    """Each history of each completion as its own tokens, and which of them the policy chose: by hand."""
    for n, completion in enumerate(rollouts.completions()):
        mask = rollouts.completion_mask.split(rollouts.completion_lengths.tolist())[n]
        prompt, place = rollouts.prompts()[int(rollouts.group[n])], 0
        for kept, length in rollouts.conversations[n].branches or [(len(prompt), len(completion))]:
            yield prompt[:kept], completion[place : place + length], mask[place : place + length]
            place += length


@pytest.mark.parametrize("template", [FORGETS, OPENS_THOUGHT], ids=["all of the prompt", "part of the prompt"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("shared", [True, False])
def test_each_history_is_scored_by_itself_with_its_gradient(policy, template, layout, shared):
    rollouts = played(policy, SAID, template)
    model = policy.model
    expected = []
    for prompt, completion, _ in sequences(rollouts):
        logits = model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        expected.append(logits.log_softmax(-1).gather(1, completion[:, None])[:, 0])
    scorer = Scorer(model, 1.0, layout, share_prompts=shared)
    rows = torch.tensor([3, 0, 2])
    wanted = torch.cat(expected).split(rollouts.completion_lengths.tolist())
    wanted = torch.cat([wanted[n] for n in rows.tolist()])
    found = scorer.score(rollouts, rows).logprobs
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    weight = model.get_input_embeddings().weight
    weights = torch.linspace(-1, 1, len(found))
    by_hand, by_scorer = (torch.autograd.grad((each * weights).sum(), weight)[0] for each in (wanted, found))
    assert (
        by_scorer - by_hand
    ).norm() < 1e-5 * by_hand.norm()  # of sums in another order, which processors round unlike
    parts = scorer.plan(rollouts, torch.arange(4), 100)
    assert sorted(torch.cat(parts).tolist()) == [0, 1, 2, 3]


def test_what_is_sampled_has_the_logprobs_of_its_history(policy):
    policy.tokenizer.chat_template = FORGETS
    source = make_source(
        policy,
        lambda row: Echo(turns=4),
        turns=Turns(max_turns=4, max_turn_length=12, history="as_template"),
        has_tools=False,
        max_completion_length=800,
    )
    policy.model.lm_head.weight.data[policy.tokenizer.eos_token_id] *= 3
    rollouts = source.sample(batch("one", "two!", "three?"), Moment()).rollouts
    source.close(0)
    scored = Scorer(policy.model, 1.0).score(rollouts, torch.arange(6)).logprobs
    own = rollouts.completion_mask
    torch.testing.assert_close(scored[own], rollouts.sampling_logprobs[own], atol=1e-5, rtol=1e-4)


def test_histories_travel_with_their_completions(policy):
    rollouts = played(policy, SAID, OPENS_THOUGHT)
    rows = [torch.tensor([2, 3]), torch.tensor([1])]
    taken = take_groups(rollouts, [1, 0], rows)
    joined = join_rollouts([taken, rollouts_of_state(rollouts_state(rollouts))])
    scorer = Scorer(policy.model, 1.0)
    found = scorer.score(joined, torch.tensor([2, 4])).logprobs
    torch.testing.assert_close(found, scorer.score(rollouts, torch.tensor([1, 1])).logprobs)
    extra = sum(kept for kept, _ in rollouts.conversations[0].branches[1:])
    assert int(planned_lengths(rollouts)[0]) == int(rollouts.completion_lengths[0]) + extra


def test_all_histories_together_have_the_room_of_a_completion(policy):
    whole = played(policy, SAID)
    first = whole.conversations[0].branches[0][1]
    cut = played(policy, SAID, max_completion_length=first + 5)
    assert [each.stop for each in cut.conversations] == ["max_tokens"] * 4
    assert cut.completion_lengths.tolist() == [first] * 4


def test_a_trail_divides_what_the_environment_said_to_one_rollout_from_the_groups_prompt():
    trail = TokenTrail([1, 2, 3, 4])
    trail.add_sampled(SampledTurn(0, [5, 6], [-0.5, -0.6], False))
    trail.begin_history(3, [7])
    trail.add_sampled(SampledTurn(0, [8], [-0.8], False))
    trail.begin_history(1, [9, 10])
    assert trail.context == [1, 9, 10]
    assert trail.room(10, 5) == 2 and trail.room(7, None) == 1
    ids, logprobs, mask = trail.row(2)
    assert ids == [3, 4, 5, 6, 3, 7, 8, 9, 10]
    assert logprobs == [0, 0, -0.5, -0.6, 0, 0, -0.8, 0, 0]
    assert mask == [False, False, True, True, False, False, True, False, False]
    assert trail.branches(2) == [(2, 4), (2, 3), (1, 2)]
    assert replace(trail, histories=[]).branches(2) == []
