"""Older keys bring older defaults. Values: TRL's GRPOConfig at its tags v0.14.0, v0.15.2, v0.17.0, v0.21.0, v0.27.0."""

from __future__ import annotations

import pytest
from parsed_config import BASE, trl_default

from grpo_lightning.migration import migrate
from grpo_lightning.migration.versions import DEFAULTS, NEWEST, default_at, parse_version, version_range

OLD = {"vllm_device": "auto"}
"""Gone after 0.17."""


def test_the_newest_defaults_are_those_of_the_installed_trl():
    without_a_field = {"max_prompt_length": None}
    for key in DEFAULTS:
        expected = without_a_field[key] if key in without_a_field else trl_default(key)
        assert default_at(key, NEWEST) == expected, key


@pytest.mark.parametrize(
    ("version", "beta", "temperature", "loss_type", "top_k"),
    [
        ("0.14", 0.04, 0.9, "grpo", 50),
        ("0.15.2", 0.04, 0.9, "grpo", 50),
        ("0.17", 0.04, 0.9, "bnpo", 50),
        ("0.18", 0.04, 1.0, "bnpo", None),
        ("0.21", 0.0, 1.0, "bnpo", None),
        ("1.9", 0.0, 1.0, "dapo", None),
    ],
)
def test_a_version_that_is_told_brings_its_defaults(version, beta, temperature, loss_type, top_k):
    config = migrate(BASE, trl_version=version).config
    found = (config.get("model.beta", 0.0), config.get("model.temperature", 1.0), config.get("model.loss_type", "dapo"))
    assert found == (beta, temperature, loss_type)
    assert config.get("model.top_k") == top_k
    assert config["model.max_completion_length"] == 256


def test_a_key_that_trl_has_no_more_dates_the_config():
    result = migrate(BASE | OLD)
    assert (result.config["model.beta"], result.config["model.temperature"]) == (0.04, 0.9)
    assert result.config["trainer.precision"] == "32-true"  # bf16 became the default in 0.19
    assert result.config["model.gradient_checkpointing"] is False
    assert result.notes[0] == "What is left out has the defaults of TRL 0.17, the last version with vllm_device."
    assert any(
        note.startswith("loss_type is not set, and its default was grpo before TRL 0.16, bnpo since")
        for note in result.notes
    )
    assert not any(note.startswith(("beta", "temperature")) for note in result.notes)  # the same from 0.14 to 0.17


def test_what_is_set_is_kept_and_not_spoken_of():
    result = migrate(BASE | OLD | {"beta": 0.001, "loss_type": "dr_grpo"})
    assert (result.config["model.beta"], result.config["model.loss_type"]) == (0.001, "dr_grpo")
    assert not any(note.startswith(("beta", "loss_type")) for note in result.notes)


def test_newer_keys_beside_it_narrow_the_range():
    assert version_range({"max_prompt_length"}) == ((0, 14), (0, 27))
    assert version_range({"max_prompt_length", "steps_per_generation"}) == ((0, 18), (0, 27))
    assert version_range({"max_prompt_length", "vllm_device"}) == ((0, 14), (0, 17))
    assert version_range({"beta", "learning_rate"}) == (NEWEST, NEWEST)


def test_where_versions_differ_the_line_says_which_had_what():
    notes = migrate(BASE | {"max_prompt_length": 512}).notes
    assert (
        "beta is not set, and its default was 0.04 before TRL 0.19, 0.0 since. If the run was older, give --trl_version."
        in notes
    )
    assert any(
        note.startswith("temperature is not set, and its default was 0.9 before TRL 0.18, 1.0 since") for note in notes
    )


def test_a_config_without_old_keys_has_the_defaults_of_today_and_says_so():
    result = migrate(BASE)
    assert "model.beta" not in result.config and result.config["model.max_completion_length"] == 512
    assert result.notes[0].startswith("What is left out has the defaults of TRL 1.16")


def test_the_engine_of_older_versions_is_a_server_and_its_arithmetic_was_not_corrected():
    config = migrate(BASE | OLD | {"use_vllm": True, "vllm_server_host": "gpu1"}).config
    assert config["model.generator.class_path"] == "grpo_lightning.generation.VLLMServer"
    assert config["model.importance_sampling_correction"] is False
    assert "model.importance_sampling_mode" not in config  # without effect then


def test_trl_0_14_counts_prompts_per_device():
    config = migrate(
        BASE | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}, trl_version="0.14"
    ).config
    assert config["data.batch_size"] == 6
    assert migrate(BASE, trl_version="0.14").config["data.batch_size"] == 8  # its defaults: 1 prompt, 8 times


@pytest.mark.parametrize("text", ["latest", "0", "0.13", "0.1x"])
def test_what_is_no_version_with_grpo_is_refused(text):
    with pytest.raises(ValueError, match="--trl_version"):
        parse_version(text)
