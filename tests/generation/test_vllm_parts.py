"""Completions of a real vLLM engine that are cut short and gone on with."""

from __future__ import annotations

import pytest
import torch
from runs import fit
from vllm_cases import PROMPTS, SEEDS, SETTINGS, TOKENIZER, eager_torch, ending_model, needs_vllm, small_engine

from grpo_lightning.generation import VLLMColocate
from grpo_lightning.generation.parts import Part, PartRequest
from grpo_lightning.generation.room import RefusedPromptError
from grpo_lightning.rollouts.partial_rollouts import PartialRollouts
from grpo_lightning.rollouts.sampler_canary import MISMATCH

pytestmark = needs_vllm

REQUESTS = [
    PartRequest(list(ids), seed + g, limit)
    for ids, seed, limit in zip(PROMPTS, SEEDS, (40, 40, 7, 40), strict=True)
    for g in range(3)
]


COMPILE_KEYS: list[str] = []
"""By which vLLM finds what it has compiled, of each engine."""


@pytest.fixture(scope="module", params=[True, False], ids=["short bookkeeping", "vLLM's own"])
def engine(request):
    with eager_torch():
        generator, policy = small_engine(shorten_bookkeeping=request.param), ending_model()
        generator.start(policy, TOKENIZER, "toy")
        generator.update_weights(policy)
        COMPILE_KEYS.append(generator._engine.llm.llm_engine.vllm_config.compute_hash())
        yield generator, policy
        generator.stop()


def logprobs_of(policy, prompt: list[int], part: Part) -> torch.Tensor:
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([prompt + part.ids])).logits[0, len(prompt) - 1 : -1]
    return (logits / SETTINGS.temperature).log_softmax(-1).gather(-1, torch.tensor(part.ids)[:, None])[:, 0]


def test_parts_that_nobody_cuts_end_by_themselves(engine):
    generator, policy = engine
    ended: list[int] = []
    parts = generator.sample_parts(REQUESTS, SETTINGS, lambda n: ended.append(n) is not None)
    assert sorted(ended) == list(range(len(REQUESTS)))
    ends = policy.generation_config.eos_token_id
    for request, part in zip(REQUESTS, parts, strict=True):
        assert part.end == ("stop" if part.ids[-1] in ends else "limit")
        assert len(part.ids) == request.limit or part.end == "stop"
        torch.testing.assert_close(
            torch.tensor(part.logprobs), logprobs_of(policy, request.prompt_ids, part), rtol=1e-3, atol=1e-3
        )
    assert {part.end for part in parts} == {"stop", "limit"}


def test_a_cut_leaves_the_beginnings_of_what_would_have_been_sampled_and_repeats(engine):
    generator, _ = engine
    whole = generator.sample_parts(REQUESTS, SETTINGS, lambda n: False)

    def cut_after(count: int) -> list[Part]:
        ended: list[int] = []
        return generator.sample_parts(REQUESTS, SETTINGS, lambda n: ended.append(n) or len(ended) >= count)

    parts, again = cut_after(5), cut_after(5)
    assert parts == again
    kinds = [part.end for part in parts]
    assert 5 <= len(kinds) - kinds.count("cut") < len(kinds)
    for part, other in zip(parts, whole, strict=True):
        assert part.ids == other.ids[: len(part.ids)] and part.ids
        assert part.end == other.end if part.end != "cut" else len(part.ids) <= len(other.ids)
    assert generator._engine.llm.llm_engine.has_unfinished_requests() is False


def test_a_completion_goes_on_from_where_it_was_cut(engine):
    generator, policy = engine
    first = generator.sample_parts(REQUESTS, SETTINGS, lambda n: True)
    cut = [n for n, part in enumerate(first) if part.end == "cut"]
    rest = [
        PartRequest(REQUESTS[n].prompt_ids + first[n].ids, 1000 + n, REQUESTS[n].limit - len(first[n].ids)) for n in cut
    ]
    for request, part in zip(rest, generator.sample_parts(rest, SETTINGS, lambda n: False), strict=True):
        assert part.end != "cut"
        torch.testing.assert_close(
            torch.tensor(part.logprobs), logprobs_of(policy, request.prompt_ids, part), rtol=1e-3, atol=1e-3
        )


def test_engines_of_the_same_policy_find_each_others_compiled_code(engine):
    assert len(set(COMPILE_KEYS)) == 1


def test_more_requests_than_run_together_are_cut_too():
    with eager_torch():
        generator, policy = small_engine(engine_kwargs={"max_num_seqs": 4}), ending_model()
        generator.start(policy, TOKENIZER, "toy")
        generator.update_weights(policy)
        parts = generator.sample_parts(REQUESTS, SETTINGS, lambda n: True)
        generator.stop()
    assert [len(part.ids) >= 1 for part in parts] == [True] * len(REQUESTS)
    assert sum(len(part.ids) == 1 for part in parts) >= len(REQUESTS) - 8


def test_training_carries_completions_over_and_samples_from_the_policy(tmp_path):
    folder = tmp_path / "model"
    ending_model().save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    settings = {
        "partial_rollouts": PartialRollouts(carry_over=0.5),
        "max_completion_length": 24,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
    }
    with eager_torch():
        module = fit(folder, tmp_path, max_steps=3, generator=small_engine(), data={"batch_size": 4}, **settings)
    assert isinstance(module.source.generator, VLLMColocate)
    assert module.step_metrics["sampling/age/carried_groups"] == 2
    assert 0 < module.step_metrics["sampling/age/off_policy"] < 1
    assert module.step_metrics[MISMATCH] < 0.01


def test_a_part_that_the_engine_has_no_room_for_is_refused_by_its_place(engine):
    requests = [*REQUESTS[:4], PartRequest([5] * 250, 0, 7)]
    with pytest.raises(RefusedPromptError, match=r"^prompt 4 .* 250 tokens and may reach 257 .* engine holds 256"):
        engine[0].sample_parts(requests, SETTINGS, lambda n: False)
