"""Models that cannot be trained are refused before weights load, by what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toy_models import build_tokenizer, save_toy_model
from transformers import AutoConfig, LlavaConfig

from grpo_lightning.policy.policy import Policy
from grpo_lightning.policy.settings import PolicySettings
from grpo_lightning.policy.text_class import class_for_text


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    build_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def policy_of(directory: Path, config: dict[str, Any], **settings: Any) -> Policy:
    (directory / "config.json").write_text(json.dumps(config))
    return Policy(PolicySettings(model_name_or_path=str(directory), **settings))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "qwen9"}, r"is a qwen9, which transformers [\d.]+ does not know\. Install a newer"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}, "brings code .* never run"),
    ],
)
def test_a_model_that_transformers_does_not_know_is_refused_as_such(directory: Path, config: Any, message: str):
    (directory / "configuration_own.py").write_text("raise SystemExit('was run')")
    with pytest.raises(ValueError, match=message) as raised:
        policy_of(directory, config)
    assert "complete" not in str(raised.value), "its files are"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LlavaConfig().to_dict(), r"is a llava, whose .* Set model\.vision_tower=frozen"),
        (
            {"model_type": "t5"},
            "^model.model_name_or_path=.* is a t5, of which transformers has no causal language model",
        ),
    ],
)
def test_a_model_without_a_class_for_text_alone_is_refused_by_name(directory: Path, config: Any, message: str):
    policy = policy_of(directory, config)
    with pytest.raises(ValueError, match=message):
        policy.check_layers()


def test_a_vision_language_model_is_loaded_for_text_as_its_language_part_where_transformers_can():
    found = {name: class_for_text(AutoConfig.for_model(name)).__name__ for name in ("qwen3", "qwen3_5", "smolvlm")}
    causal = dict.fromkeys(("qwen3", "qwen3_5"), "AutoModelForCausalLM")
    assert found == causal | {"smolvlm": "AutoModelForImageTextToText"}


def test_dropout_of_adapters_on_experts_is_refused_before_weights_load(tmp_path: Path):
    save_toy_model(tmp_path, "qwen3_moe")
    (tmp_path / "model.safetensors").unlink()
    policy = Policy(PolicySettings(model_name_or_path=str(tmp_path), finetuning_type="lora"))
    with pytest.raises(ValueError, match=r"^model\.lora_dropout=0\.05 .*: the experts .* Set model\.lora_dropout=0"):
        policy.check_layers()
    for way_out in ({"lora_dropout": 0.0}, {"lora_target": "q_proj,k_proj,v_proj,o_proj"}):
        Policy(PolicySettings(model_name_or_path=str(tmp_path), finetuning_type="lora", **way_out)).check_layers()
