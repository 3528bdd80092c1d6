"""One real vLLM engine in this process: what it samples, what it reports, and what it leaves as it was."""

from __future__ import annotations

import json
import os
import random
import re

import numpy
import pytest
import torch
from vllm_cases import (
    END_IDS,
    LONG_PROMPT,
    PROMPTS,
    SEEDS,
    SETTINGS,
    TOKENIZER,
    ending_model,
    mismatch,
    needs_vllm,
    rows,
    running,
    shift_weights,
)

from grpo_lightning.generation import SamplingSettings
from grpo_lightning.generation.transformers.sampling import TokenSampler
from grpo_lightning.generation.vllm.patches.process import RESTORED_VARIABLES

pytestmark = needs_vllm


@pytest.fixture(scope="module")
def policy():
    return ending_model()


@pytest.fixture(scope="module")
def generator(policy):
    threads, variables = torch.get_num_threads(), dict(os.environ)
    with running(policy) as generator:
        assert torch.get_num_threads() == threads
        assert {os.environ.get(name) == variables.get(name) for name in RESTORED_VARIABLES} == {True}
        yield generator
    assert not torch.distributed.is_initialized()


def test_sampling_logprobs_equal_those_of_a_forward_pass(generator, policy):
    rollouts = generator.generate(PROMPTS, SETTINGS, SEEDS)
    assert rollouts.group.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [prompt.tolist() for prompt in rollouts.prompts()] == PROMPTS
    assert len(set(rollouts.completion_lengths.tolist())) > 2
    assert mismatch(policy, rollouts) < 1e-4


def test_new_weights_are_sampled_from_only_after_an_update_and_cached_prompts_are_forgotten(generator, policy):
    generator.generate([LONG_PROMPT], SETTINGS, [1])
    shift_weights(policy)
    stale = generator.generate([LONG_PROMPT], SETTINGS, [1])
    assert mismatch(policy, stale) > 1.0
    metrics = generator.update_weights(policy)
    assert mismatch(policy, generator.generate([LONG_PROMPT], SETTINGS, [1])) < 1e-4
    size = sum(p.numel() * 4 for p in policy.parameters())
    assert metrics["weight_sync/megabytes"] == pytest.approx(size / 1e6)
    assert metrics["weight_sync/gb_per_second"] == pytest.approx(size / 1e9 / metrics["weight_sync/seconds"])


def test_a_completion_depends_on_its_prompt_and_seed_and_not_on_the_batch(generator):
    everything = rows(generator.generate(PROMPTS, SETTINGS, SEEDS))
    again = rows(generator.generate(PROMPTS, SETTINGS, SEEDS))
    assert [ids for ids, _, _ in again] == [ids for ids, _, _ in everything]
    alone = rows(generator.generate(PROMPTS[1:2], SETTINGS, SEEDS[1:2]))
    assert [ids for ids, _, _ in alone] == [ids for ids, _, _ in everything[3:6]]
    other = rows(generator.generate(PROMPTS[1:2], SETTINGS, [99]))
    assert [ids for ids, _, _ in other] != [ids for ids, _, _ in alone]
    assert len({tuple(ids) for ids, _, _ in alone}) > 1  # completions of a group differ


def test_global_random_states_and_autocast_are_left_alone(generator, policy):
    expected = rows(generator.generate(PROMPTS, SETTINGS, SEEDS))
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = rows(generator.generate(PROMPTS, SETTINGS, SEEDS))
        generator.update_weights(policy)
    assert [ids for ids, _, _ in found] == [ids for ids, _, _ in expected]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == states[1:]
    assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-4


def test_on_completed_gets_every_completion_once_in_the_order_in_which_they_end(generator):
    calls = []
    rollouts = generator.generate(PROMPTS, SETTINGS, SEEDS, lambda n, ids: calls.append((n, list(ids))))
    assert sorted(n for n, _ in calls) == list(range(12))
    assert all(rows(rollouts)[n][0] == ids for n, ids in calls)
    lengths = [len(ids) for _, ids in calls]
    assert lengths == sorted(lengths) and len(set(lengths)) > 1


def test_an_error_in_a_callback_leaves_the_engine_usable(generator):
    def fail(n: int, ids: list[int]) -> None:
        raise RuntimeError("reward failed")

    with pytest.raises(RuntimeError, match="reward failed"):
        generator.generate(PROMPTS, SETTINGS, SEEDS, fail)
    assert generator.generate(PROMPTS[:1], SETTINGS, SEEDS[:1]).num_completions == 3


def test_every_end_of_sequence_id_ends_a_completion_and_is_kept(generator):
    for ids, _, truncated in rows(generator.generate(PROMPTS, SETTINGS, SEEDS)):
        ends = [position for position, token in enumerate(ids) if token in END_IDS]
        assert ends == ([] if truncated else [len(ids) - 1])
        assert not truncated or len(ids) == 12


def test_stop_strings_end_a_completion_with_the_token_that_completes_them(generator, policy):
    free = rows(generator.generate(PROMPTS, SETTINGS, SEEDS))
    ids = max((ids for ids, _, _ in free), key=len)
    stop = TOKENIZER.decode(ids[4:6])
    settings = SamplingSettings(
        num_generations=3, max_completion_length=12, temperature=0.7, stop=(stop, "never there")
    )
    found = generator.generate(PROMPTS, settings, SEEDS)
    assert [ids[:6], False] in [[row_ids, truncated] for row_ids, _, truncated in rows(found)]
    assert mismatch(policy, found) < 1e-4


def test_greedy_completions_are_those_of_transformers(generator, policy):
    settings = SamplingSettings(num_generations=2, max_completion_length=12, temperature=0)
    found = generator.generate(PROMPTS, settings, SEEDS)
    for n, (ids, _, _) in enumerate(rows(found)):
        expected = policy.generate(torch.tensor([PROMPTS[n // 2]]), do_sample=False, max_new_tokens=12, pad_token_id=0)
        assert ids == expected[0, len(PROMPTS[n // 2]) :].tolist()
    assert mismatch(policy, found, temperature=1.0) < 1e-4


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.3}, {"repetition_penalty": 1.7}])
def test_reshaped_distributions_are_those_of_the_fallback(generator, policy, options):
    settings = SamplingSettings(num_generations=3, max_completion_length=8, temperature=0.8, **options)
    found = generator.generate(PROMPTS, settings, SEEDS)
    for n, (ids, logprobs, _) in enumerate(rows(found)):
        prompt = PROMPTS[n // 3]
        logits = policy(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].detach()
        for t, token in enumerate(ids):
            scores = TokenSampler(settings).scores(logits[t : t + 1], torch.tensor([prompt + ids[:t]]))
            assert logprobs[t] == pytest.approx(float(scores.log_softmax(-1)[0, token]), abs=1e-4)


@pytest.mark.parametrize(
    ("structure", "fits"),
    [
        ({"regex": "[0-9]{3}"}, lambda text: re.fullmatch("[0-9]{3}", text)),
        ({"choice": ["yes", "no"]}, lambda text: text in ("yes", "no")),
        ({"json": {"type": "boolean"}}, lambda text: isinstance(json.loads(text), bool)),
        ({"grammar": 'root ::= "a" "b"'}, lambda text: text == "ab"),
    ],
)
def test_structured_outputs_are_enforced_by_vllms_own_parameters(generator, structure, fits):
    settings = SamplingSettings(num_generations=3, max_completion_length=12, structured_outputs=structure)
    for ids, _, truncated in rows(generator.generate(PROMPTS[:2], settings, SEEDS[:2])):
        assert not truncated and ids[-1] in END_IDS
        assert fits(TOKENIZER.decode(ids[:-1]).strip())


def test_more_prompt_tokens_than_the_engine_computes_at_once_are_sampled_too(generator, policy):
    prompts = [[5 + (n + i) % 90 for i in range(140)] for n in range(36)]  # vLLM takes 4096 tokens at a time
    settings = SamplingSettings(num_generations=1, max_completion_length=3, temperature=0.7)
    assert mismatch(policy, generator.generate(prompts, settings, list(range(36)))) < 1e-4


def test_no_prompts_give_empty_rollouts(generator):
    rollouts = generator.generate([], SETTINGS, [])
    assert (rollouts.num_prompts, rollouts.num_completions, rollouts.completion_ids.numel()) == (0, 0, 0)


@pytest.mark.parametrize(
    ("prompts", "settings", "seeds", "message"),
    [
        (PROMPTS, {"max_completion_length": 250}, SEEDS, r"prompt 0 .* 257 .*holds 256 \(.*max_model_length"),
        (PROMPTS, {}, SEEDS[:2], "4 prompts came with 2 seeds"),
        ([[1], []], {"max_completion_length": 4}, [1, 2], "prompt 1 .* no tokens"),
        ([[1]], {"max_completion_length": 4, "structured_outputs": {"regexp": "a"}}, [1], "model.structured_outputs"),
    ],
)
def test_what_cannot_be_sampled_is_refused_in_the_words_of_the_config(generator, prompts, settings, seeds, message):
    with pytest.raises(ValueError, match=message):
        generator.generate(prompts, SamplingSettings(**settings), seeds)


def test_a_policy_of_another_shape_is_refused_before_the_engine_is_touched(generator, policy):
    with pytest.raises(ValueError, match=r"changed in shape \['lm_head.weight: \(320, 64\) -> \(333, 64\)'"):
        other = ending_model()
        other.resize_token_embeddings(333)
        generator.update_weights(other)
    assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-4


def test_the_engine_knows_the_policys_class_without_a_second_interpreter(generator):
    from vllm import ModelRegistry
    from vllm.model_executor.models.registry import _RegisteredModel

    assert isinstance(ModelRegistry.models["Qwen2ForCausalLM"], _RegisteredModel)  # a lazy one has to be asked about


def test_the_number_of_threads_can_be_set_beside_an_engine(generator):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_an_engine_of_transformers_own_class_leaves_the_class_to_the_policy():
    """VLLM has no class of its own for SmolLM3; the second engine of a process finds what the first one left."""
    policy, passes = ending_model("smollm3"), []
    policy.model.register_forward_hook(lambda *_: passes.append("of the policy"))
    for _ in range(2):
        with running(policy) as generator:
            assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-4
            shift_weights(policy)
            generator.update_weights(policy)
            assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-4
            assert type(policy)(policy.config).device.type == "cpu"  # made as ever
    assert len(passes) == 4 * len(PROMPTS) * SETTINGS.num_generations


def test_convolutions_beside_attention_are_sampled_as_they_are_trained():
    policy = ending_model("lfm2")
    with running(policy) as generator:
        assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-4
        shift_weights(policy)
        generator.update_weights(policy)
        assert mismatch(policy, generator.generate(PROMPTS, SETTINGS, SEEDS)) < 1e-4
