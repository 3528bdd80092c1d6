"""What the start of a run says of its chat template."""

from __future__ import annotations

from pathlib import Path

import pytest
import trl
from rollouts.turns.tool_models import tool_tokenizer

from grpo_lightning.rollouts.turns.chat_form import ChatForm
from grpo_lightning.rollouts.turns.template_note import HIDES_TOOLS, shows_tools, template_note

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As SmolLM2's: it writes neither tools nor calls."""


def form_of(template: str | None) -> ChatForm:
    tokenizer = tool_tokenizer()
    kwargs = {} if template is None else {"chat_template": template}
    return ChatForm(tokenizer, frozenset({tokenizer.eos_token_id}), kwargs, tool_call_format="hermes")


def test_a_template_that_never_shows_the_tools_is_told_of():
    """With tool_call_format set, as the error of such a template advised, a policy trained without ever hearing of its tools."""
    assert HIDES_TOOLS in template_note(form_of(PLAIN), has_tools=True)
    assert HIDES_TOOLS not in template_note(form_of(PLAIN), has_tools=False)  # an environment of text


@pytest.mark.parametrize("name", [None, "qwen3.jinja", "qwen2_5.jinja"])
def test_a_template_that_shows_the_tools_is_not(name: str | None):
    path = None if name is None else Path(trl.__file__).parent / "chat_templates" / name
    form = form_of(None if path is None else path.read_text())
    assert shows_tools(form) and HIDES_TOOLS not in template_note(form, has_tools=True)
