"""Chat templates of models for images, which read contents as lists of parts, get prompts of text as such lists."""

from __future__ import annotations

from pathlib import Path

import pytest
import trl
from toy_models import build_tokenizer

from grpo_lightning.datamodules.demonstrations import WrittenSettings, demonstrations
from grpo_lightning.datamodules.prompt_form import PromptForm
from grpo_lightning.datamodules.prompts import PromptDataset
from grpo_lightning.messages import reads_parts_alone
from grpo_lightning.rewards.text.chat_text import prompt_text, whole_text

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
ASKED = [{"prompt": [{"role": "user", "content": "What is 2 + 2?"}]}]


@pytest.mark.parametrize("name", ["idefics3", "llava_next", "smolvlm"])
def test_a_question_in_text_reaches_the_prompt(name: str):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    data = PromptDataset(ASKED, dict, PromptForm(tokenizer), "rows")
    assert "What is 2 + 2?" in tokenizer.decode(data.batch([0]).prompt_ids[0])


@pytest.mark.parametrize("name", ["idefics3", "llava_next", "smolvlm"])
def test_a_demonstration_and_a_scored_completion_have_their_texts(name: str):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    batch = PromptDataset([ASKED[0] | {"completion": "It is 4."}], dict, PromptForm(tokenizer), "rows").batch([0])
    shown = demonstrations(batch, tokenizer, WrittenSettings(max_completion_length=64))
    assert "It is 4." in tokenizer.decode(shown.completion_ids)
    assert "What is 2 + 2?" in prompt_text(ASKED[0]["prompt"], tokenizer)
    whole = whole_text(ASKED[0]["prompt"], "It is 4.", tokenizer)
    assert whole.index("What is 2 + 2?") < whole.index("It is 4.")


@pytest.mark.parametrize(("name", "alone"), [("qwen3", False), ("smolvlm", True), ("gemma3", False)])
def test_templates_that_read_strings_are_given_strings(name: str, alone: bool):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    assert reads_parts_alone(tokenizer, {}) is alone
