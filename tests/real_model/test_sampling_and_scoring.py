"""A real chat template, a real vocabulary and trained weights: what is sampled is what is scored, in every layout."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from runs import token_logprobs
from sides.addition import conversation
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from vllm_cases import eager_torch, needs_vllm, small_engine

from grpo_lightning import GRPODataModule
from grpo_lightning.generation import SamplingSettings, TransformersGenerator
from grpo_lightning.generation.base import Generator
from grpo_lightning.scoring.scorer import Scorer
from grpo_lightning.types import Rollouts

SAMPLED = SamplingSettings(num_generations=3, max_completion_length=16, temperature=1.0)
GREEDY = SamplingSettings(num_generations=1, max_completion_length=16, temperature=0.0)
TWO_EACH = replace(SAMPLED, num_generations=2)
"""Completions of one prompt share it in a pack, and each has a pass of its own otherwise."""
SEEDS = [11, 12]


def test_prompts_reach_the_policy_as_the_chat_template_says(tokenizer, tmp_path):
    rows = [{"prompt": conversation(24, 18)[-3:], "ground_truth": "42"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = GRPODataModule(dataset=str(tmp_path / "train.jsonl"), batch_size=1)
    data.tokenizer = tokenizer
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    expected = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is 34 + 44?<|im_end|>\n<|im_start|>assistant\n34 + 44 = 78<|im_end|>\n"
        "<|im_start|>user\nWhat is 24 + 18?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = list(batch.prompt_ids[0])
    assert tokenizer.decode(ids) == expected
    assert ids.count(1) == 5  # <|im_start|> is one token, not the letters of its name
    assert ids.count(2) == 4  # so is <|im_end|>
    digits = tokenizer.convert_ids_to_tokens(ids)
    assert [token for token in digits if token.isdigit()] == list("344434447824") + list("18")  # one token a digit


def sample(
    generator: Generator,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *ways: SamplingSettings,
) -> list[Rollouts]:
    """Completions of the prompts by each of the settings."""
    generator.start(policy, tokenizer, "smollm2")
    try:
        generator.update_weights(policy)
        return [generator.generate(prompts, settings, SEEDS) for settings in ways]
    finally:
        generator.stop()


def check(generator: Generator, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]):
    """Logprobs of samples are the policy's; greedy completions are those of transformers' own loop."""
    sampled, greedy = sample(generator, policy, tokenizer, prompts, SAMPLED, GREEDY)
    with torch.no_grad():
        expected = torch.cat(token_logprobs(policy, sampled))
    torch.testing.assert_close(sampled.sampling_logprobs, expected, rtol=1e-3, atol=1e-3)
    ended = [completion[-1].item() == tokenizer.eos_token_id for completion in sampled.completions()]
    assert ended == [not truncated for truncated in sampled.truncated.tolist()]
    for prompt, completion in zip(prompts, greedy.completions(), strict=True):
        limit = {"max_new_tokens": GREEDY.max_completion_length, "do_sample": False}
        whole = policy.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), **limit)
        assert completion.tolist() == whole[0, len(prompt) :].tolist()
    assert tokenizer.decode(greedy.completions()[0], skip_special_tokens=True) == "24 + 18 = 42"


def test_transformers_generator_samples_what_the_policy_scores(policy, tokenizer, prompts):
    check(TransformersGenerator(), policy, tokenizer, prompts)


@pytest.mark.vllm
@needs_vllm[1]
def test_vllm_samples_what_the_policy_scores(policy, tokenizer, prompts):
    with eager_torch():
        check(small_engine(max_model_length=512), policy, tokenizer, prompts)


def test_packed_logprobs_and_gradients_equal_those_of_plain_passes(policy, tokenizer, prompts):
    (rollouts,) = sample(TransformersGenerator(), policy, tokenizer, prompts, TWO_EACH)
    expected = torch.cat(token_logprobs(policy, rollouts))
    weights = torch.randn(len(expected), generator=torch.Generator().manual_seed(0))
    (expected @ weights).backward()
    gradient = {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}
    policy.zero_grad()
    scorer = Scorer(policy, SAMPLED.temperature, "packed")
    assert scorer.layout == "packed"
    found = scorer.score(rollouts, torch.arange(rollouts.num_completions)).logprobs
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    (found @ weights).backward()
    for name, parameter in policy.named_parameters():
        assert (parameter.grad - gradient[name]).norm() <= 1e-3 * gradient[name].norm(), name
