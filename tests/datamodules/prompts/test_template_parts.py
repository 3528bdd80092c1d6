"""Chat templates of models for images, which read contents as lists of parts, get prompts of text as such lists."""

from __future__ import annotations

from pathlib import Path

import pytest
import trl
from toy_models import build_tokenizer

from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.prompts.form import PromptForm
from grpo_lightning.datamodules.written.demonstrations import WrittenSettings, demonstrations
from grpo_lightning.messages import content_form
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


@pytest.mark.parametrize(
    ("name", "form"),
    [("qwen2_5", "strings"), ("qwen3", "strings"), ("llama3_1", "strings"), ("smolvlm", "parts"), ("gemma3", "any")],
)
def test_what_a_template_reads_is_found_out(name: str, form: str):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    assert content_form(tokenizer, {}) == form


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1"])
def test_a_template_that_reads_strings_gets_the_texts_of_parts(name: str):
    """Llama 3 wrote the list as Python does, Qwen 3 left it out, Qwen 2.5 raised."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 2?"}]
    rows = [ASKED[0] | {"completion": "4"}, {"prompt": [{"role": "user", "content": parts}], "completion": "4"}]
    batch = PromptDataset(rows, dict, PromptForm(tokenizer), "rows").batch([0, 1])
    as_text, as_parts = batch.prompt_ids
    assert as_text == as_parts
    assert "What is 2 + 2?" in tokenizer.decode(as_parts)
    texts = {prompt_text(row["prompt"], tokenizer) for row in rows}
    assert len(texts) == 1
    written = demonstrations(batch, tokenizer, WrittenSettings(max_completion_length=64)).completions()
    assert written[0].tolist() == written[1].tolist()


def test_a_scored_completion_costs_one_rendering():
    """It was three: how the template reads contents was found out for every text."""
    tokenizer, rendered = build_tokenizer(), []
    apply = tokenizer.apply_chat_template
    tokenizer.apply_chat_template = lambda chat, **options: rendered.append(chat) or apply(chat, **options)
    texts = {whole_text(ASKED[0]["prompt"], "It is 4.", tokenizer) for _ in range(10)}
    assert len(texts) == 1 and len(rendered) <= 10 + 2
    before = len(rendered)
    tokenizer.chat_template = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    assert content_form(tokenizer, {}) == "parts" and len(rendered) == before + 2
    as_strings = "{% for m in messages %}{{ m.content + '' }}{% endfor %}"
    assert content_form(tokenizer, {"chat_template": as_strings}) == "strings"
    assert content_form(tokenizer, {}) == "parts" and len(rendered) == before + 4
