"""Names of rewards belong to the script that a config was written for."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import pytest
from parsed_config import BASE

from grpo_lightning.migration import migrate

OPEN_R1 = {"reward_funcs": ["accuracy", "format", "tag_count"], "reward_weights": [1.0, 0.5, 0.25]}


def made(reward: dict[str, Any]) -> Any:
    module, _, name = reward["class_path"].rpartition(".")
    return getattr(import_module(module), name)(**reward["init_args"])


def test_names_of_open_r1_are_never_taken_for_ours():
    result = migrate(BASE | OPEN_R1)
    rewards = result.config["model.rewards"]
    assert [reward["init_args"]["name"] for reward in rewards] == ["accuracy", "format"]
    assert rewards[0]["init_args"]["answer_key"] == "solution"
    assert rewards[1]["class_path"].endswith("RegexReward")
    for name in OPEN_R1["reward_funcs"]:
        assert f"{name} " in result.refused["reward_funcs"]


def test_a_reward_that_is_left_out_takes_its_weight_with_it():
    result = migrate(BASE | OPEN_R1)
    assert result.config["model.reward_weights"] == [1.0, 0.5]
    assert result.refused["reward_weights"] == "Without those of tag_count, which are left out."
    first = migrate(BASE | {"reward_funcs": ["cosine", "my.reward"], "reward_weights": [2.0, 3.0]}).config
    assert (first["model.rewards"], first["model.reward_weights"]) == (["my.reward"], [3.0])


@pytest.mark.parametrize("name", ["code", "length", "tag_count", "cosine", "reasoning_steps", "xml_count", "numeric"])
def test_a_name_without_a_counterpart_is_left_out_with_a_way_out(name):
    result = migrate(BASE | {"reward_funcs": [name]})
    assert "model.rewards" not in result.config
    reason = result.refused["reward_funcs"]
    assert reason.startswith(f"{name} ") and "left out, with its weight" in reason
    assert any(
        way in reason for way in ("rite it as a function", "Ours is code_execution", "LengthReward", "import path")
    )


def open_r1_format(text: str) -> float:
    """open-r1's rule (src/open_r1/rewards.py, format_reward), in Python's own re."""
    return float(bool(re.match(r"^<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$", text, re.DOTALL | re.MULTILINE)))


@pytest.mark.parametrize(
    "text",
    [
        "<think>\na\n</think>\n<answer>\n1\n</answer>",
        "<think>a</think><answer>1</answer>",  # ours of this name takes it
        "<think>\na\n</think>\n<answer>\n1\n</answer>\nand more",  # the end of a line is enough
        "<think>\na\n</think>\n<answer>\n1\n</answer> more",
        "so\n<think>\na\n</think>\n<answer>\n1\n</answer>",
    ],
)
def test_open_r1s_format_has_its_own_values(text):
    reward = made(migrate(BASE | {"reward_funcs": ["format"]}).config["model.rewards"][0])
    assert reward(prompts=["p"], completions=[text]) == [open_r1_format(text)]


@pytest.mark.parametrize(("length", "value"), [(80, 0.0), (90, -0.5), (100, -1.0), (120, -1.0)])
def test_open_r1s_soft_overlong_punishment_takes_its_limits_from_the_config(length, value):
    settings = {"reward_funcs": ["soft_overlong_punishment"], "max_completion_len": 100, "soft_punish_cache": 20}
    result = migrate(BASE | settings)
    reward = made(result.config["model.rewards"][0])
    assert reward(prompts=["p"], completions=["x"], completions_ids=[[0] * length]) == [value]
    assert result.mapped["soft_punish_cache"] == ["model.rewards"]


def test_open_r1s_repetition_penalty_counts_trigrams_of_words():
    settings = {"reward_funcs": ["repetition_penalty"], "repetition_max_penalty": -0.5}
    reward = made(migrate(BASE | settings).config["model.rewards"][0])
    # a b c, b c a, c a b, a b c: 3 of 4 are distinct
    assert reward(prompts=["p"], completions=["a b c A b c"]) == [-0.125]


def test_arguments_of_a_reward_that_is_not_in_use_are_named():
    result = migrate(BASE | {"soft_punish_cache": 5})
    assert "soft_overlong_punishment" in result.refused["soft_punish_cache"]


def test_names_may_stand_in_one_text_with_commas():
    listed = migrate(BASE | {"reward_funcs": ["a.b,c.d"], "reward_weights": "1, 2"}).config
    assert (listed["model.rewards"], listed["model.reward_weights"]) == (["a.b", "c.d"], [1.0, 2.0])


def test_a_flat_config_means_our_rewards():
    flat = {"stage": "grpo", "reward_funcs": "accuracy,format", "reward_weights": "1.0,0.5"}
    assert migrate(flat).config["model.rewards"] == ["accuracy", "format"]
