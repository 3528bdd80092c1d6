"""Prompts of text beside tools or an environment."""

from __future__ import annotations

import pytest
from runs import fit, write_prompts, write_rows

from grpo_lightning.policy.policy import Policy


class Echo:
    def reset(self, **row) -> str:
        return "Say something."

    def step(self, text: str):
        return text, 0.0, True


@pytest.mark.parametrize("which", ["train", "held_out"])
def test_prompts_of_text_are_refused_before_weights_load(which, tiny_model_dir, tmp_path, monkeypatch):
    def load(policy):
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(Policy, "load_model", load)
    text = str(write_prompts(tmp_path / f"{which}.jsonl"))
    talk = write_rows(tmp_path / "talk.jsonl", [{"prompt": [{"role": "user", "content": f"{i}"}]} for i in range(4)])
    data = {"dataset": text} if which == "train" else {"dataset": talk, "eval_dataset": text}
    with pytest.raises(
        ValueError, match=rf"the prompts of \S*{which}.jsonl are text. Set data.converter_args.conversat"
    ):
        fit(tiny_model_dir, tmp_path, environment=Echo, data=data)
