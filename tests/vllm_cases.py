"""What the tests with a real vLLM engine share: small engines, prompts, and logprobs from plain forward passes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from toy_models import build_model, build_tokenizer
from transformers import GenerationConfig, PreTrainedModel

from grpo_lightning.generation import SamplingSettings, VLLMColocate
from grpo_lightning.generation.vllm.compat import why_unusable
from grpo_lightning.types import Rollouts

needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.skipif(why_unusable() is not None, reason=f"needs vLLM: {why_unusable()}"),
]

TOKENIZER = build_tokenizer()
END_IDS = [TOKENIZER.eos_token_id, *range(100, 140)]
LONG_PROMPT = [5 + i % 90 for i in range(140)]
"""Longer than a block of vLLM's prefix cache, which on a CPU holds 128 tokens."""
PROMPTS = [[40, 41, 42, 43, 44, 45, 46], [50], LONG_PROMPT, [60, 61, 62]]
SEEDS = [11, 12, 13, 2**62 + 14]
SMALL_SERVER = [
    *("--enforce-eager", "--kv-cache-memory-bytes", str(64 * 2**20), "--max-num-seqs", "64"),
    # As on a GPU: the engine's process holds the model. By its name alone vLLM would start a worker process on a CPU.
    *("--distributed-executor-backend", "vllm.v1.executor.uniproc_executor.UniProcExecutor"),
]
"""Options of a server: eager, with room for 64 MiB of keys and values, two processes instead of three."""
SETTINGS = SamplingSettings(num_generations=3, max_completion_length=12, temperature=0.7)


@contextmanager
def eager_torch() -> Iterator[None]:
    """Without torch.compile: vLLM would compile a helper of its sampler for half a minute."""
    variables = {"TORCH_COMPILE_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    disabled, torch._dynamo.config.disable = torch._dynamo.config.disable, True
    try:
        yield
    finally:
        torch._dynamo.config.disable = disabled
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def ending_model(architecture: str = "qwen2", **overrides: Any) -> PreTrainedModel:
    """A toy model for which 41 of the 320 tokens end a completion, so that lengths differ."""
    model = build_model(architecture, tokenizer=TOKENIZER, **overrides)
    model.generation_config = GenerationConfig(eos_token_id=END_IDS)
    return model


def small_engine(**settings: Any) -> VLLMColocate:
    """Eager, with room for 64 MiB of keys and values and 256 positions."""
    defaults = {"enforce_eager": True, "kv_cache_memory_gb": 1 / 16, "max_model_length": 256}
    return VLLMColocate(**(defaults | settings))


@contextmanager
def running(policy: PreTrainedModel, **settings: Any) -> Iterator[VLLMColocate]:
    """An engine with the policy's weights, ended afterwards."""
    generator = small_engine(**settings)
    with eager_torch():
        generator.start(policy, TOKENIZER, "toy")
        try:
            generator.update_weights(policy)
            yield generator
        finally:
            generator.stop()


def rows(rollouts: Rollouts) -> list[tuple[list[int], list[float], bool]]:
    lengths = rollouts.completion_lengths.tolist()
    ids = [row.tolist() for row in rollouts.completion_ids.split(lengths)]
    logprobs = [row.tolist() for row in rollouts.sampling_logprobs.split(lengths)]
    return list(zip(ids, logprobs, rollouts.truncated.tolist(), strict=True))


@torch.no_grad()
def mismatch(policy: PreTrainedModel, rollouts: Rollouts, temperature: float = 0.7) -> float:
    """Largest difference in nats between the engine's logprobs and those of an unpadded forward pass."""
    worst = 0.0
    for (ids, logprobs, _), group in zip(rows(rollouts), rollouts.group.tolist(), strict=True):
        prompt = rollouts.prompts()[group].tolist()
        logits = policy(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float()
        expected = (logits / temperature).log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
        worst = max(worst, float((expected - torch.tensor(logprobs)).abs().max()))
    return worst


@torch.no_grad()
def shift_weights(policy: PreTrainedModel, scale: float = 0.1) -> None:
    """Changes every trainable weight, as a large optimizer step would."""
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.add_(scale * torch.randn_like(parameter))


def even_tokens(completions_ids: list[list[int]], **columns: Any) -> list[float]:
    """A reward in [0, 1] that differs inside every group: the share of even token ids."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completions_ids]
