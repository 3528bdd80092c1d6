"""The stages of configs/chain on a part of SmolLM2-135M, two steps each, with adapters: what one stage hands to the next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from test_chain import ROOT, STAGES, run
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

SHORT = ["--data.batch_size=2", "--model.finetuning_type=lora"]
OF_STAGE = {"3_grpo": ["--model.num_generations=2", "--model.max_completion_length=8", "--model.temperature=1.0"]}


@pytest.fixture(scope="module")
def exports(shallow_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, found = tmp_path_factory.mktemp("chain"), {}
    for name in STAGES:
        config = yaml.safe_load((ROOT / f"configs/chain/{name}.yaml").read_text())
        rows = (ROOT / config["data"]["dataset"]).read_text().splitlines()[:8]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
        config["data"] |= {"dataset": str(folder / f"{name}.jsonl"), "eval_dataset": None}
        config["trainer"].pop("val_check_interval", None)
        if name == "1_sft":
            config["model"]["model_name_or_path"] = str(shallow_dir)
        found[name] = run(name, config, folder, *SHORT, *OF_STAGE.get(name, []))
    return found


def test_each_stage_hands_over_tokenizer_template_and_special_tokens(shallow_dir, exports):
    start = AutoTokenizer.from_pretrained(shallow_dir)
    chat = [{"role": "user", "content": "12+30="}, {"role": "assistant", "content": "<answer>42</answer>"}]
    ends = GenerationConfig.from_pretrained(shallow_dir).eos_token_id
    for name, path in exports.items():
        tokenizer = AutoTokenizer.from_pretrained(path)
        assert tokenizer.get_vocab() == start.get_vocab()
        assert tokenizer.special_tokens_map == start.special_tokens_map
        assert tokenizer.apply_chat_template(chat, tokenize=False) == start.apply_chat_template(chat, tokenize=False)
        if name != "2_rm":
            assert GenerationConfig.from_pretrained(path).eos_token_id == ends


def test_each_policy_is_the_one_before_with_its_adapter_added_in(shallow_dir, exports):
    for name, before in (("1_sft", shallow_dir), ("2_dpo", exports["1_sft"]), ("3_grpo", exports["1_sft"])):
        adapter = exports[name].with_name("last-adapter")
        assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(before)
        base = AutoModelForCausalLM.from_pretrained(before, dtype=torch.float32)
        start = {key: value.clone() for key, value in base.state_dict().items()}
        merged = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
        handed = AutoModelForCausalLM.from_pretrained(exports[name], dtype=torch.float32).state_dict()
        torch.testing.assert_close(handed, merged, rtol=1e-2, atol=1e-3)  # exports may be in bfloat16
        assert any(not torch.equal(handed[key], start[key]) for key in start)


def test_the_reward_model_scored_the_last_stage(exports):
    config = json.loads((exports["2_rm"] / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    logged = (exports["3_grpo"].parents[1] / "logs/version_0/metrics.csv").read_text().splitlines()[0].split(",")
    assert "rewards/reward_model/mean" in logged
