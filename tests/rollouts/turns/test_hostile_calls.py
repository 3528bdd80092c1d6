"""Calls that are JSON, and that no tokenizer takes as they are."""

from __future__ import annotations

import pytest
from rollouts.turns.test_turn_source import batch, policy  # noqa: F401  # a fixture
from rollouts.turns.tool_models import Adder, Factory, Scripted

from grpo_lightning.generation import SamplingSettings
from grpo_lightning.rollouts.base import Moment
from grpo_lightning.rollouts.source import RolloutSettings
from grpo_lightning.rollouts.turns.settings import Turns
from grpo_lightning.rollouts.turns.source import TurnSource
from grpo_lightning.rollouts.turns.tool_call_formats import ToolCall, read_hermes, read_llama3_json

NAMING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message.get('name', '') }}{{ message['content'] }}"
    "{% for call in message.get('tool_calls') or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}{% if loop.last %}!{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Writes the names of tools, and earlier turns otherwise than the last one."""


@pytest.mark.parametrize("history", ["append", "as_template"])
@pytest.mark.parametrize(
    "call", ['{"name": "\\ud83d", "arguments": {}}', '{"name": "add", "arguments": {"a": 1, "b": 2, "c": "\\ud83d"}}']
)
def test_half_a_surrogate_pair_in_a_call_costs_no_run(policy, call, history):  # noqa: F811
    script = [f"<tool_call>\n{call}\n</tool_call><|im_end|>", "Done.<|im_end|>"]
    settings = RolloutSettings(
        rewards=[lambda completions, **columns: [0.0] * len(completions)],
        generator=Scripted(policy.tokenizer, script),
        chat_template_kwargs={"chat_template": NAMING},
    )
    how = SamplingSettings(num_generations=2, max_completion_length=300)
    turns = Turns(history=history, tool_call_format="hermes")
    source = TurnSource(settings, how, policy, 0, Factory(lambda row: Adder()), turns)
    sampled = source.sample(batch("1+2?"), Moment())
    assert [conversation.stop for conversation in sampled.rollouts.conversations] == ["eos", "eos"]
    assert [conversation.calls for conversation in sampled.rollouts.conversations] == [1, 1]
    assert sampled.await_rewards().values.tolist() == [[0.0], [0.0]]


def test_arguments_of_null_are_none():
    assert read_hermes('<tool_call>{"name": "now", "arguments": null}</tool_call>').calls == [ToolCall("now", {})]
    assert read_llama3_json('{"name": "now", "parameters": null}').calls == [ToolCall("now", {})]
