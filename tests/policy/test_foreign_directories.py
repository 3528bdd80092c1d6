"""The directory of a model may come from anybody: no code in it runs, whoever reads it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from toy_models import build_model

from grpo_lightning.commands.saved_policy import load_for_chat
from grpo_lightning.commands.serve import stored_dtype
from grpo_lightning.finetuning.adapter_files import load_adapter
from grpo_lightning.policy.loading import load_causal_lm, load_tokenizer
from grpo_lightning.policy.model_config import load_config
from grpo_lightning.rewards.kinds.reward_model import RewardModelReward

TRAP = """
import pathlib
pathlib.Path({mark!r}).touch()
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
class Config(PreTrainedConfig):
    model_type = "trap"
class Model(PreTrainedModel):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture(params=["a known architecture", "one of its own"])
def directory(request: pytest.FixtureRequest, tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A model whose config asks for the code beside it; the file ``ran`` beside the directory says that it ran."""
    path = tmp_path / "model"
    shutil.copytree(tiny_model_dir, path)
    (path / "trap.py").write_text(TRAP.format(mark=str(tmp_path / "ran")))
    classes = ("AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModel")
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "trap.Config", **dict.fromkeys(classes, "trap.Model")}
    if request.param == "one of its own":
        config["model_type"] = "trap"
    (path / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((path / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": [None, "trap.Tokenizer"]}
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return path


def as_classifier(path: str) -> RewardModelReward:
    """Past the first look at what kind of model it is."""
    config = json.loads(Path(path, "config.json").read_text()) | {"architectures": ["TrapForSequenceClassification"]}
    Path(path, "config.json").write_text(json.dumps(config))
    return RewardModelReward(model=path)


READERS: dict[str, Callable[[str], object]] = {
    "config": load_config,
    "tokenizer": load_tokenizer,
    "policy": lambda path: load_causal_lm(path, torch.float32),
    "reward model": lambda path: as_classifier(path)(prompts=["a"], completions=["b"]),
    "serve": stored_dtype,
}


@pytest.mark.parametrize("reader", READERS)
def test_code_beside_a_model_is_never_run(reader, directory, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # the answer to "do you wish to run the custom code?"
    with suppress(ValueError, OSError, KeyError):  # it may be refused
        READERS[reader](str(directory))
    assert not (directory.parent / "ran").exists()
    assert not [name for name in sys.modules if name.endswith(".trap")]


def test_weights_that_are_cut_off_are_said_to_be(tiny_model_dir, tmp_path):
    path = tmp_path / "cut"
    shutil.copytree(tiny_model_dir, path)
    (weights,) = path.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(
        ValueError, match=r"the weights cannot be read\. The directory exists: check that its files are"
    ):
        load_causal_lm(str(path), torch.float32)


@pytest.mark.parametrize("content", ['{"eos_token_id": [1', "[1]", "", "\xff\xfe"])
def test_a_generation_config_that_cannot_be_read_is_refused(content, tiny_model_dir, tmp_path):
    path = tmp_path / "cut"
    shutil.copytree(tiny_model_dir, path)
    (path / "generation_config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"generation_config\.json cannot be read, which says where completions end"):
        load_causal_lm(str(path), torch.float32)


def test_an_attention_that_is_not_installed_is_named(tiny_model_dir):
    if importlib.util.find_spec("flash_attn") is not None:
        pytest.skip("it is installed")
    with pytest.raises(ValueError, match=r"model\.attn_implementation=flash_attention_2: "):
        load_causal_lm(str(tiny_model_dir), torch.float32, "flash_attention_2")


def test_the_trap_is_one(directory):
    from transformers import AutoConfig

    AutoConfig.from_pretrained(str(directory), trust_remote_code=True)
    assert (directory.parent / "ran").exists()


def test_pickled_weights_of_a_policy_are_refused(tmp_path):
    path = tmp_path / "pickled"
    model = build_model("qwen2")
    model.save_pretrained(path)
    (path / "model.safetensors").unlink()
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_causal_lm(str(path), torch.float32)


class Payload:
    """What pickle calls when it reads it: a trap as a file of weights."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("content", ["pickled", "cut off"])
def test_weights_of_an_adapter_that_are_pickled_or_cut_off_are_refused(content, tiny_model_dir, tmp_path):
    path, mark = tmp_path / "adapter", tmp_path / "ran"
    base = str(tiny_model_dir)
    get_peft_model(load_causal_lm(base, torch.float32), LoraConfig(target_modules=["q_proj"])).save_pretrained(path)
    load_tokenizer(base).save_pretrained(path)
    weights = path / "adapter_model.safetensors"
    if content == "cut off":
        weights.write_bytes(weights.read_bytes()[:500])
    else:
        weights.unlink()
        torch.save(Payload(mark), path / "adapter_model.bin")
    for read in (
        lambda: load_adapter(load_causal_lm(base, torch.float32), str(path), base),
        lambda: load_for_chat(path, None),
    ):
        with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
            read()
    assert not mark.exists()
