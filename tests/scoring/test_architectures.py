"""What docs/models.md says of each architecture, held against a toy of it.

A new release of transformers shows here at once what it changed.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, build
from peft import LoraConfig, get_peft_model
from test_scorer import assert_relatively_close, one_by_one, some_rollouts
from transformers import AutoModelForCausalLM, PreTrainedModel

from grpo_lightning.generation.base import SamplingSettings
from grpo_lightning.generation.stopping import StopRule
from grpo_lightning.generation.transformers.decode_probe import decoding_obstacle
from grpo_lightning.generation.transformers.decoding import decode
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.types import Rollouts

MODELS_PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
ROWS = torch.arange(7)
# Routers give more than one tensor; state-space layers read the matrices of theirs without calling them.
TARGETS = {
    "target_modules": "all-linear",
    "exclude_modules": r".*(router|gate|mamba|in_proj|out_proj|conv|linear_attn).*",
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request) -> tuple[str, PreTrainedModel, Scorer]:
    torch.manual_seed(0)
    model = build(request.param)
    return request.param, model, Scorer(model, 0.7)


def gradient(model: PreTrainedModel) -> torch.Tensor:
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return flat


def test_scores_and_gradients_are_those_of_plain_passes_in_the_expected_layout_and_any_split(case):
    name, model, scorer = case
    rollouts = some_rollouts()
    everything = scorer.plan(rollouts, ROWS, 10_000)
    assert scorer.layout == ARCHITECTURES[name].layout
    assert not scorer.is_plain
    assert len(everything) == 1
    expected = one_by_one(model, rollouts, ROWS).logprobs
    expected.sum().backward()
    expected_gradient = gradient(model)
    found = torch.zeros_like(expected)
    for budget in (10_000, 25):
        for rows in scorer.plan(rollouts, ROWS, budget):
            logprobs = scorer.score(rollouts, rows).logprobs
            logprobs.sum().backward()
            found[rollouts.tokens_of(rows)] = logprobs.detach()
        torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-4)
        assert_relatively_close(gradient(model), expected_gradient, 1e-3)


def test_sampled_logprobs_are_those_that_training_computes_or_the_model_is_refused_at_the_start(case):
    name, model, scorer = case
    with torch.no_grad():
        reason = decoding_obstacle(model)
        assert (reason is None) == ARCHITECTURES[name].sampled, reason
        if reason is not None:
            return
        prompts = [[3, 9, 27, 81, 50, 53, 62], [5, 25]]
        uniforms = torch.rand(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        sampling = SamplingSettings(num_generations=2, max_completion_length=6, temperature=0.7)
        rule = StopRule({1, 7, 11, 30, 42, 77}, (), None)  # several, so that rows leave at different times
        sampled = decode(model, prompts, sampling, uniforms, rule, lambda row, ids: None)
        logprobs = [row[: len(ids)].tolist() for row, ids in zip(sampled.logprobs, sampled.completion_ids, strict=True)]
        rollouts = Rollouts.from_lists(prompts, sampled.completion_ids, logprobs, sampled.truncated, [0, 0, 1, 1])
        scored = scorer.score(rollouts, torch.arange(4)).logprobs
    torch.testing.assert_close(rollouts.sampling_logprobs, scored, rtol=1e-4, atol=1e-4)


def test_a_saved_model_and_a_merged_adapter_score_as_before(case, tmp_path):
    _, model, scorer = case
    rollouts = some_rollouts()
    before = scorer.score(rollouts, ROWS).logprobs.detach()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        after = Scorer(loaded, 0.7).score(rollouts, ROWS).logprobs
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
        torch.manual_seed(0)
        adapted = get_peft_model(loaded, LoraConfig(**TARGETS, r=2, init_lora_weights=False)).eval()
        expected = Scorer(adapted, 0.7).score(rollouts, ROWS).logprobs
        merged = Scorer(adapted.merge_and_unload(), 0.7).score(rollouts, ROWS).logprobs
    assert (expected - before).abs().max() > 1e-3
    torch.testing.assert_close(merged, expected, rtol=1e-3, atol=1e-3)


def test_the_page_of_models_says_what_is_tested_here():
    said = re.findall(r"^\| `([^`]+)` \| (\w+) \| (yes|no) \|$", MODELS_PAGE.read_text(), re.MULTILINE)
    tested = {(name, one.layout, "yes" if one.sampled else "no") for name, one in ARCHITECTURES.items()}
    assert len(said) == len(tested) >= 60
    assert set(said) == tested
