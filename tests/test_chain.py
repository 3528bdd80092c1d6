"""The stages of configs/chain one after the other, each from what the one before has written; two steps each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer, GenerationConfig

from grpo_lightning.__main__ import main

ROOT = Path(__file__).parent.parent
STAGES = {"1_sft": "sft", "2_dpo": "dpo", "2_rm": "rm", "3_grpo": "fit"}
BRIEF = ["--trainer.max_steps=2", "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=1"]


def run(name: str, config: dict, folder: Path, *options: str) -> Path:
    """Runs a stage with its runs/ in ``folder``; returns its export."""
    text = yaml.safe_dump(config).replace("runs/chain", str(folder)).replace("assets/", f"{ROOT}/assets/")
    path = folder / f"{name}.yaml"
    path.write_text(text)
    try:
        main([STAGES[name], "--config", str(path), *BRIEF, "--data.batch_size=4", *options])
    except SystemExit as error:
        assert error.code == 0  # commands beside Lightning's end with their status
    return Path(yaml.safe_load(text)["trainer"]["default_root_dir"]) / "hf/last"


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("chain")
    configs = {name: yaml.safe_load((ROOT / f"configs/chain/{name}.yaml").read_text()) for name in STAGES}
    return {name: run(name, config, folder) for name, config in configs.items()}


def test_each_stage_hands_over_tokenizer_template_and_special_tokens(exports):
    start = AutoTokenizer.from_pretrained(ROOT / "assets/quickstart/model")
    chat = [{"role": "user", "content": "12+30="}, {"role": "assistant", "content": "<answer>42</answer>"}]
    for path in exports.values():
        tokenizer = AutoTokenizer.from_pretrained(path)
        assert tokenizer.get_vocab() == start.get_vocab()
        assert (tokenizer.eos_token, tokenizer.pad_token) == (start.eos_token, start.pad_token)
        assert tokenizer.apply_chat_template(chat) == start.apply_chat_template(chat)


def test_each_policy_ends_completions_where_the_first_one_did(exports):
    start = GenerationConfig.from_pretrained(ROOT / "assets/quickstart/model").eos_token_id
    for name in ("1_sft", "2_dpo", "3_grpo"):
        assert GenerationConfig.from_pretrained(exports[name]).eos_token_id == start


def test_the_reward_model_is_one_and_scored_the_last_stage(exports):
    assert json.loads((exports["2_rm"] / "config.json").read_text())["architectures"][0].endswith(
        "ForSequenceClassification"
    )
    logged = (exports["3_grpo"].parents[1] / "logs/version_0/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"rewards/reward_model/mean", "rewards/accuracy/mean"} <= set(logged)


def test_a_stage_before_its_time_says_what_is_missing(tmp_path, capsys):
    config = yaml.safe_load((ROOT / "configs/chain/2_dpo.yaml").read_text())
    (tmp_path / "dpo.yaml").write_text(yaml.safe_dump(config).replace("runs/chain", str(tmp_path)))
    with pytest.raises(SystemExit):
        main(["dpo", "--config", str(tmp_path / "dpo.yaml")])
    assert "No such directory" in capsys.readouterr().err


def test_the_pairs_are_those_of_their_script(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts/quickstart"))
    import make_pairs

    for name, count, held_out in (("pairs", make_pairs.ROWS, False), ("heldout_pairs", make_pairs.HELD_OUT_ROWS, True)):
        rows = [json.loads(line) for line in (ROOT / f"assets/chain/{name}.jsonl").read_text().splitlines()]
        assert rows == list(make_pairs.pairs(count, held_out))
