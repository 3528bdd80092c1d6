"""benchmarks/smollm2_tools.py: its products, and a chat template whose calls are read."""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import AutoTokenizer

from grpo_lightning.rollouts.turns.chat_form import ChatForm
from grpo_lightning.rollouts.turns.tool_call_formats import ToolCall, read_hermes

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from smollm2_tools import CHAT_TEMPLATE, WORKED, conversation, product_rows


def factors(rows):
    words = [row["prompt"][-1]["content"].removeprefix("What is ").removesuffix("?").split(" times ") for row in rows]
    return {frozenset(map(int, pair)) for pair in words}


def test_no_held_out_or_worked_product_is_trained_on_in_either_order():
    train, held_out = product_rows()
    assert len(train) + len(held_out) == 90 * 90 - 2 * len(WORKED)
    assert not factors(train) & factors(held_out)
    assert not (factors(train) | factors(held_out)) & {frozenset(pair) for pair in WORKED}
    a, b = train[0]["prompt"][-1]["content"].removeprefix("What is ").removesuffix("?").split(" times ")
    assert train[0]["ground_truth"] == str(int(a) * int(b))
    assert product_rows() == (train, held_out)


def test_the_template_writes_calls_as_they_are_read_and_the_tools_result_behind_them(tiny_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.chat_template = CHAT_TEMPLATE
    form = ChatForm(tokenizer, frozenset({tokenizer.eos_token_id}))
    assert form.format_name == "hermes"
    text = form.render(conversation(12, 34), [])
    first = text.split("<|im_start|>assistant\n")[1].split("<|im_end|>")[0]
    assert read_hermes(first).calls == [ToolCall("multiply", {"a": 63, "b": 11})]
    assert "<|im_start|>tool\n693<|im_end|>\n<|im_start|>assistant\n63 times 11 is 693.<|im_end|>" in text
    assert text.endswith("<|im_start|>user\nWhat is 12 times 34?<|im_end|>\n<|im_start|>assistant\n")
