"""What a stage reads of the one before: weights that are not there are never drawn at random without a word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from runs import make_module
from safetensors.torch import load_file, save_file
from toy_models import save_toy_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from grpo_lightning import DPOModule
from grpo_lightning.commands import saved_policy
from grpo_lightning.finetuning.adapter_files import load_adapter, save_adapter
from grpo_lightning.policy.loading import causal_lm_without_weights, load_causal_lm, load_tokenizer
from grpo_lightning.rewards.base import RewardContractError
from grpo_lightning.rewards.kinds.reward_model import RewardModelReward
from grpo_lightning.training.distillation import Distillation, TeacherRefusedError


@pytest.fixture
def copied(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copied"))


@pytest.fixture
def reward_model_dir(tiny_model_dir: Path, tmp_path: Path) -> Path:
    path = tmp_path / "rm"
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    for each in (model, AutoTokenizer.from_pretrained(tiny_model_dir)):
        each.save_pretrained(path)
    return path


def without(path: Path, name: str, file: str = "model.safetensors") -> None:
    """Takes one tensor out of a directory's weights."""
    weights = load_file(path / file)
    del weights[name]
    save_file(weights, path / file, metadata={"format": "pt"})


def test_a_policy_without_one_of_its_weights_is_refused(copied):
    without(copied, "model.layers.0.mlp.up_proj.weight")
    with pytest.raises(
        ValueError, match=r"has no weights for model.layers.0.mlp.up_proj.weight, one of 1, which would be"
    ):
        DPOModule(model_name_or_path=str(copied)).configure_model()


@pytest.mark.parametrize("load", [load_causal_lm, causal_lm_without_weights])
def test_a_reward_model_is_no_policy(reward_model_dir, load):
    with pytest.raises(ValueError, match=r"is a Qwen2ForSequenceClassification, which scores texts and writes none"):
        load(str(reward_model_dir), torch.float32)


def test_a_policy_is_no_reward_model(tiny_model_dir):
    with pytest.raises(ValueError, match=r"reward_model: model=.* is a Qwen2ForCausalLM and no sequence classifier"):
        RewardModelReward(model=str(tiny_model_dir))


@pytest.mark.parametrize("config", ['{"architectures": [', "[]"])
def test_a_reward_models_config_that_was_cut_off_is_named_with_the_reward(reward_model_dir, config):
    (reward_model_dir / "config.json").write_text(config)
    with pytest.raises(ValueError, match=r"^reward_model: .*config\.json cannot be read .* copied whole"):
        RewardModelReward(model=str(reward_model_dir))


def test_a_reward_model_without_its_head_is_refused(reward_model_dir):
    ask = {"prompts": ["1+1="], "completions": ["2"]}
    assert len(RewardModelReward(model=str(reward_model_dir), device="cpu")(**ask)) == 1
    without(reward_model_dir, "score.weight")
    with pytest.raises(
        RewardContractError, match=r"has no weights for score.weight, one of 1.*no complete Qwen2ForSeq"
    ):
        RewardModelReward(model=str(reward_model_dir), device="cpu")(**ask)


def test_a_directory_without_a_tokenizer_is_refused(copied):
    for path in copied.glob("token*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"has a tokenizer without tokens of texts.*It needs tokenizer.json"):
        load_tokenizer(str(copied))


def test_an_adapter_of_a_policy_is_none_of_a_reward_model_nor_the_other_way_round(
    tiny_model_dir, reward_model_dir, tmp_path
):
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    classifier = AutoModelForSequenceClassification.from_pretrained(reward_model_dir)
    for model, task in ((policy, "CAUSAL_LM"), (classifier, "SEQ_CLS")):
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type=task))
        adapted.save_pretrained(tmp_path / task)
        adapted.unload()
    with pytest.raises(ValueError, match=r"is the adapter of a language model, and this run trains a reward model"):
        load_adapter(classifier, str(tmp_path / "CAUSAL_LM"), str(tiny_model_dir))
    with pytest.raises(ValueError, match=r"is the adapter of a reward model, and this run trains a language model"):
        load_adapter(policy, str(tmp_path / "SEQ_CLS"), str(tiny_model_dir))


def test_an_adapter_without_one_of_its_layers_is_refused(tiny_model_dir, tmp_path):
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    adapted = get_peft_model(policy, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path)
    adapted.unload()
    load_adapter(policy, str(tmp_path), str(tiny_model_dir)).unload()
    without(tmp_path, "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight", "adapter_model.safetensors")
    with pytest.raises(
        ValueError, match=r"Check that it was copied whole. \(Found missing adapter keys.*layers.1.self_attn"
    ):
        load_adapter(policy, str(tmp_path), str(tiny_model_dir))


@pytest.mark.parametrize("damage", ["other", "cut"])
def test_the_base_of_an_adapter_is_checked_before_its_weights_load(copied, tmp_path, monkeypatch, damage):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(copied), config)
    save_adapter(policy, tmp_path / "adapter", str(copied))
    AutoTokenizer.from_pretrained(copied).save_pretrained(tmp_path / "adapter")
    monkeypatch.setattr(saved_policy, "load_causal_lm", lambda *_, **__: pytest.fail("weights have loaded"))
    if damage == "other":
        save_toy_model(copied, seed=1)
        told = (
            rf"^source='.*adapter' was trained on .*, not on base_model_name_or_path of adapter_config.json='{copied}'"
        )
    else:
        (copied / "model.safetensors").write_bytes(b"cut")
        told = rf"^base_model_name_or_path of adapter_config.json='{copied}': the weights cannot be read\."
    with pytest.raises(ValueError, match=told):
        saved_policy.load_for_chat(tmp_path / "adapter", None)


def test_a_teacher_with_fewer_embeddings_than_the_policy_has_tokens_is_refused_at_the_start(tiny_model_dir, copied):
    config = json.loads((copied / "config.json").read_text()) | {"vocab_size": 200}
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has 200 embeddings \(vocab_size\), and the policy's tokenizer token 319"):
        make_module(tiny_model_dir, distillation=Distillation(str(copied)))
    make_module(tiny_model_dir, distillation=Distillation(str(save_toy_model(copied))))


def test_what_is_wrong_with_a_teacher_is_said_of_the_teacher(tiny_model_dir, copied, reward_model_dir, tmp_path):
    def taught_by(directory):
        module = make_module(tiny_model_dir, distillation=Distillation(str(directory)))
        module.configure_model()
        module.teachers.start()

    with pytest.raises(ValueError, match=r"^model\.distillation\.teacher=.*nowhere' cannot be read"):
        taught_by(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"^model\.distillation\.teacher=.*rm' is a Qwen2ForSequenceClassification"):
        taught_by(reward_model_dir)
    without(copied, "model.norm.weight")
    with pytest.raises(
        TeacherRefusedError, match=r"^model\.distillation\.teacher=.*copied' has no weights for model\.norm"
    ):
        taught_by(copied)
    (copied / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(
        TeacherRefusedError, match=r"^model\.distillation\.teacher=.*copied': the weights cannot be read"
    ):
        taught_by(copied)
    for path in copied.glob("token*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"^model\.distillation\.teacher=.*copied' has a tokenizer without"):
        taught_by(copied)
