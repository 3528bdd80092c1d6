"""Rotary frequencies that transformers chooses by the longest sequence of a pass, fixed for a run."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from grpo_lightning.numerics.rope_scaling import fix_rope_scaling

SHORT, LONG = [1.0, 1.0, 2.0, 2.0], [4.0, 5.0, 6.0, 7.0]
PLAIN = [100.0 ** (-k / 4) for k in range(4)]  # theta ** (-2k / 8) for heads of 8


def model(rope: dict, model_type: str = "llama", **overrides) -> PreTrainedModel:
    sizes = {"vocab_size": 31, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}
    config = AutoConfig.for_model(
        model_type, **sizes, **heads, **overrides, rope_parameters={"rope_theta": 100.0, **rope}
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def longrope() -> PreTrainedModel:
    factors = {"short_factor": SHORT, "long_factor": LONG}
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 16, "factor": 4.0, **factors}
    return model(rope, "phi3", original_max_position_embeddings=16)


@pytest.mark.parametrize(
    ("longest", "factors", "name"), [(None, LONG, "long"), (17, LONG, "long"), (16, SHORT, "short")]
)
def test_longrope_has_the_factors_of_the_longest_sequence_of_the_run(longest, factors, name):
    policy = longrope()
    said = fix_rope_scaling(policy, longest)
    assert len(said) == 1
    assert f"the {name} factors" in said[0]
    rotary = policy.model.rotary_emb
    expected = torch.tensor([plain / factor for plain, factor in zip(PLAIN, factors, strict=True)])
    for length in (3, 40):  # on both sides of the boundary
        policy(input_ids=torch.ones(1, length, dtype=torch.int64))
        torch.testing.assert_close(rotary.inv_freq, expected)
    assert rotary.attention_scaling == pytest.approx(math.sqrt(1 + math.log(4) / math.log(16)))
    assert fix_rope_scaling(policy, 16) == []  # a second opinion changes nothing
    torch.testing.assert_close(rotary.inv_freq, expected)


def test_dynamic_scaling_has_the_base_of_the_longest_sequence_and_none_within_the_models_positions():
    rope = {"rope_type": "dynamic", "factor": 2.0}
    within, beyond = model(rope), model(rope)
    fix_rope_scaling(within, 50)
    fix_rope_scaling(beyond, 128)
    torch.testing.assert_close(within.model.rotary_emb.inv_freq, torch.tensor(PLAIN))
    base = 100.0 * (2.0 * 128 / 64 - 1) ** (8 / 6)
    expected = torch.tensor([base ** (-k / 4) for k in range(4)])
    torch.testing.assert_close(beyond.model.rotary_emb.inv_freq, expected)
    beyond(input_ids=torch.ones(1, 3, dtype=torch.int64))
    torch.testing.assert_close(beyond.model.rotary_emb.inv_freq, expected)


def test_frequencies_that_do_not_depend_on_the_length_stay_as_they_are():
    policy = model({"rope_type": "linear", "factor": 2.0})
    before = policy.model.rotary_emb.inv_freq.clone()
    assert fix_rope_scaling(policy, 10) == []
    assert policy.model.rotary_emb.rope_type == "linear"
    assert torch.equal(policy.model.rotary_emb.inv_freq, before)
