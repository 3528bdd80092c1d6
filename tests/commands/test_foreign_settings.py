"""A run's config from somebody else: whatever it names for its model, nothing is imported."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from grpo_lightning.commands.saved_policy import load_checkpoint
from grpo_lightning.commands.settings.foreign import peft_config
from grpo_lightning.policy.settings import PolicySettings


def lora(**arguments: Any) -> dict[str, Any]:
    return {"class_path": "peft.LoraConfig", "init_args": arguments}


@pytest.mark.parametrize(
    "config",
    [
        "chunk.T",
        "this.X",
        "idlelib.idle.X",
        "{class_path: chunk.T}",
        "somewhere/config.yaml",
        "config",
        {"class_path": "chunk.T"},
        {"class_path": "peft.LoraConfig", "init_args": "{loftq_config: chunk.T}"},
        {"loftq_config": "chunk.T"},
        lora(loftq_config="chunk.T"),
        lora(**{"loftq_config.class_path": "chunk.T"}),
        lora(eva_config={"class_path": "chunk.T"}),
        lora(eva_config={"init_args": {"adjust_scaling_factors": {"class_path": "chunk.T"}}}),
        lora(runtime_config="chunk.T"),
        lora(rank_pattern={"a": {"class_path": "chunk.T"}}),
        lora(rank_pattern="{class_path: chunk.T}"),
        lora(megatron_config={"a": 1}, megatron_core="chunk"),
        {"class_path": "peft.chunk.T"},
        {"class_path": "peft.tuners.importlib.import_module", "init_args": {"name": "chunk"}},
        {"class_path": "peft.AutoPeftModel"},
        {"class_path": "peft.tuners.lora.config.os"},
        {"class_path": "peft.tuners.lora.config.warnings.warn", "init_args": {"message": "chunk"}},
        {"class_path": ["chunk.T"]},
        {"class_path": "LoraConfig", "init_args": {"corda_config": "chunk.T"}},
        {"class_path": "peft.LoraConfig", "dict_kwargs": {"more": "chunk.T"}},
    ],
)
def test_a_class_of_elsewhere_is_refused_before_its_module_is_run(tmp_path, monkeypatch, config):
    (tmp_path / "chunk.py").write_text("class T: pass\n")  # a module of Python's own has that name
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    with pytest.raises(ValueError, match="only fit imports what a config names"):
        peft_config(config)
    assert not {"chunk", "this", "idlelib"} & (set(sys.modules) - before)


@pytest.mark.parametrize(
    "config",
    [
        "peft.LoraConfig",
        "LoraConfig",
        None,
        lora(target_modules=r".*\.q_proj", task_type="CAUSAL_LM", exclude_modules=["lm_head"]),
        lora(target_modules=["model.layers.0.q_proj"], modules_to_save=["lm_head"], rank_pattern={"model.q_proj": 4}),
        lora(eva_config={"class_path": "peft.EvaConfig", "init_args": {"rho": 2.0}}, init_lora_weights="eva"),
        lora(corda_config={"cache_file": "cov.pt"}, megatron_core="megatron.core"),
        lora(corda_config={"class_path": "peft.tuners.lora.config.CordaConfig", "init_args": {"cache_file": "cov.pt"}}),
        lora(corda_config={"class_path": "CordaConfig"}),
        lora(runtime_config={"ephemeral_gpu_offload": True}, use_dora=True, bias="none", task_type=None),
        lora(
            loftq_config={"loftq_bits": 8}, target_modules=["q_proj"], layers_pattern="layers", layers_to_transform=[0]
        ),
        {"class_path": "peft.tuners.lora.config.LoraConfig", "init_args": {"r": 2}},
        lora(loftq_config={}, auto_mapping={"parent_library": "transformers.models"}),
        {"task_type": "CAUSAL_LM"},
    ],
)
def test_what_a_run_of_this_program_names_is_taken(tmp_path, config):
    settings = {"model_name_or_path": "a.b/c.d", "finetuning_type": "lora", "peft_config": config}
    settings["new_special_tokens_config"] = {"<a>": "chunk.T"}
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PolicySettings, "model")
    read = parser.parse_object({"model": settings})
    of_fit = parser.instantiate_classes(read).model.peft_config
    assert peft_config(config) == of_fit
    written = yaml.safe_load(parser.dump(read))["model"]  # as a run's config.yaml has it
    assert peft_config(written.get("peft_config")) == of_fit


def test_what_is_no_configuration_of_peft_is_refused():
    for config in ("peft.EvaConfig", 3, [lora()], lora(megatron_config={"a": 1}, megatron_core="chunk")):
        with pytest.raises(ValueError, match="only fit imports what a config names"):
            peft_config(config)


def test_a_missing_package_is_said_in_its_own_words(tmp_path, monkeypatch):
    real = importlib.util.find_spec  # of a package that is not installed here, in place of one that may be
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: real("no_such_package" if name == "bitsandbytes" else name, *more),
    )
    config = {"model": {"model_name_or_path": "a", "finetuning_type": "qlora"}}
    with pytest.raises(ValueError, match="needs bitsandbytes, which is not installed"):
        load_checkpoint(tmp_path / "last.ckpt", config)
