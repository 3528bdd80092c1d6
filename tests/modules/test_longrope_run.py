"""Whole runs of a LongRoPE model whose completions grow past the boundary between its two sets of frequencies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import fit, weights
from toy_models import save_toy_model
from transformers import AutoModelForCausalLM

from grpo_lightning.generation import TransformersGenerator
from grpo_lightning.rollouts.sampler_canary import MISMATCH

BOUNDARY = 16
ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 16,
    "long_factor": [4.0] * 16,
    "original_max_position_embeddings": BOUNDARY,
    "factor": 8.0,
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("longrope") / "model"
    return save_toy_model(path, "phi3", rope_parameters=ROPE, original_max_position_embeddings=BOUNDARY)


@pytest.mark.parametrize(("max_model_length", "factor"), [(None, 4.0), (64, 4.0), (BOUNDARY, 1.0)])
def test_sampler_and_trainer_have_the_frequencies_of_max_model_length(model_dir, tmp_path, max_model_length, factor):
    length = 16 if max_model_length != BOUNDARY else 8  # prompts have up to 8 tokens
    generator = TransformersGenerator(max_model_length=max_model_length)
    module = fit(model_dir, tmp_path, generator=generator, max_completion_length=length, beta=0.1)
    assert module.policy.model.model.rotary_emb.inv_freq[0].item() == pytest.approx(1 / factor)
    assert module.trainer.callback_metrics[MISMATCH] < 1e-5


def test_with_top_p_a_run_trains_on_what_it_sampled(model_dir, tmp_path):
    module = fit(model_dir, tmp_path, top_p=0.9, max_completion_length=16)
    before = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    after = weights(module)
    assert max((after[name] - weight).abs().max() for name, weight in before.named_parameters()) > 1e-4
