"""Rows of pairs and demonstrations as token ids, beside what TRL 1.16.0 makes of them; what differs does so on purpose."""

from __future__ import annotations

import json
from typing import Any

import datasets
import pytest
from datasets import Dataset
from toy_models import CHAT_TEMPLATE, EOS_TOKEN, PAD_TOKEN, build_tokenizer
from transformers import PreTrainedTokenizerBase

from grpo_lightning.datamodules.converters import get_dataset_converter
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.prompts.form import PromptForm
from grpo_lightning.datamodules.written.demonstrations import WrittenSettings, demonstrations
from grpo_lightning.datamodules.written.preferences import read_preferences
from grpo_lightning.types import PromptBatch

trl = pytest.importorskip("trl")
if trl.__version__ != "1.16.0":
    pytest.skip(f"parity is defined against TRL 1.16.0, found {trl.__version__}", allow_module_level=True)

TEMPLATES = {
    # Qwen's form, with the tools of a row, tool calls and contents in parts.
    "turns": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
        "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}"
        "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>"
        "{% if not loop.last %}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}"
    ),
    # Llama 2's: no generation prompt, spaces that it takes away, an end of its own for each answer.
    "instructions": (
        "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content | string | trim }} {{ eos_token }}"
        "{% else %}[INST] {{ m.content | string }} [/INST]{% endif %}{% endfor %}"
    ),
}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


SYSTEM = {"role": "system", "content": "Be brief."}
SEEN = {"role": "tool", "content": "blue"}
LOOK = said("", tool_calls=[{"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}])
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
ASKED, BLUE, GREEN = [user("Sky?")], [said("blue")], [said("green")]
FIRST = [user("Sky?"), said("What of it?"), user("Its colour")]
PAIRS: dict[str, dict[str, Any]] = {
    "text": {"prompt": "The sky is", "chosen": " 17 + 25", "rejected": " 5"},
    "text with its end": {"prompt": "The sky is", "chosen": f" 17{EOS_TOKEN}", "rejected": " 5"},
    "text on new lines": {"prompt": "Q: 1\nA:", "chosen": "\n\n5 \n", "rejected": "\n7"},
    "text of all alphabets": {"prompt": "Größe 😀:", "chosen": " 三百", "rejected": " né"},
    "text without a prompt": {"chosen": "The sky is blue.", "rejected": "The sky is green."},
    "equal texts": {"prompt": "The sky is", "chosen": " 17", "rejected": " 17"},
    "chat": {"prompt": ASKED, "chosen": BLUE, "rejected": GREEN},
    "chat without a prompt": {"chosen": ASKED + BLUE, "rejected": ASKED + GREEN},
    "several turns": {"prompt": FIRST, "chosen": BLUE, "rejected": GREEN},
    "several turns without a prompt": {"chosen": FIRST + BLUE, "rejected": FIRST + GREEN},
    "system": {"prompt": [SYSTEM, *ASKED], "chosen": BLUE, "rejected": GREEN},
    "equal answers": {"prompt": ASKED, "chosen": BLUE, "rejected": BLUE},
    "equal chats without a prompt": {"chosen": ASKED + BLUE, "rejected": ASKED + BLUE},
    "a chat that the other goes on": {"chosen": FIRST + BLUE, "rejected": FIRST[:2]},
    "empty answer": {"prompt": ASKED, "chosen": BLUE, "rejected": [said("")]},
    "white space": {"prompt": [user(" Sky? ")], "chosen": [said(" blue \n")], "rejected": [said("\ngreen")]},
    "parts": {
        "prompt": [user([{"type": "text", "text": "Sky?"}])],
        "chosen": [said([{"type": "text", "text": "blue"}])],
        "rejected": [said([{"type": "text", "text": "green"}])],
    },
    "tools": {"prompt": ASKED, "chosen": [LOOK], "rejected": GREEN, "tools": TOOLS},
    "tools as text": {"prompt": ASKED, "chosen": [LOOK], "rejected": GREEN, "tools": json.dumps(TOOLS)},
    "turns with a tool": {"prompt": ASKED, "chosen": [LOOK, SEEN, *BLUE], "rejected": GREEN, "tools": TOOLS},
    "two answers": {"prompt": ASKED, "chosen": [*BLUE, said("sure")], "rejected": GREEN},
    "arguments of the template": {
        **{"prompt": ASKED, "chosen": BLUE, "rejected": GREEN},
        "chat_template_kwargs": {"mood": "calm"},
    },
}
WRITTEN: dict[str, dict[str, Any]] = {
    name: {"prompt": row["prompt"], "completion": row["chosen"], **({"tools": row["tools"]} if "tools" in row else {})}
    for name, row in PAIRS.items()
    if "prompt" in row
}
SHAPES = [(name, template) for name in PAIRS for template in TEMPLATES if (name, template) != ("parts", "instructions")]
"""Where a template reads strings alone, TRL has a list of parts written as Python writes it: test_template_parts.py."""


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def tokenizer_with(template: str) -> PreTrainedTokenizerBase:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATES[template]
    return tokenizer


def read(row: dict[str, Any], converter: str, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PromptBatch:
    """As from a file, whose table gives all messages the same keys."""
    stored = Dataset.from_list([row])[0]
    return PromptDataset([stored], get_dataset_converter(converter, **settings), PromptForm(tokenizer), "rows").batch(
        [0]
    )


def prepared(trainer: type, config: Any, row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, *further: Any) -> Any:
    """The row as TRL's trainer has it before it makes batches."""
    made: Any = object.__new__(trainer)
    made._tokenizer, made.chat_template, made.completion_only_loss = tokenizer, None, True
    return made._prepare_dataset(Dataset.from_list([row]), tokenizer, config, *further, "train")[0]


def options(kind: type) -> Any:
    return kind(output_dir="unused", bf16=False, max_length=None, report_to="none")


def of_pair(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Prompt, chosen and rejected here."""
    rollouts = read_preferences(read(row, "dpo", tokenizer), tokenizer, WrittenSettings(), True).rollouts
    return [ids.tolist() for ids in (rollouts.prompts()[0], *rollouts.completions())]


@pytest.mark.parametrize(("name", "template"), SHAPES)
def test_prompt_and_both_completions_of_a_pair_are_trls(name, template):
    tokenizer = tokenizer_with(template)
    theirs = prepared(trl.DPOTrainer, options(trl.DPOConfig), dict(PAIRS[name]), tokenizer)
    assert of_pair(PAIRS[name], tokenizer) == [theirs[f"{part}_ids"] for part in ("prompt", "chosen", "rejected")]


@pytest.mark.parametrize(("name", "template"), [shape for shape in SHAPES if shape[0] in WRITTEN])
def test_tokens_of_a_demonstration_and_those_that_count_are_trls(name, template):
    tokenizer = tokenizer_with(template)
    theirs = prepared(trl.SFTTrainer, options(trl.SFTConfig), dict(WRITTEN[name]), tokenizer, False, None)
    rollouts = demonstrations(read(WRITTEN[name], "sft", tokenizer), tokenizer, WrittenSettings())
    prompt, completion = rollouts.prompts()[0].tolist(), rollouts.completion_ids.tolist()
    assert prompt + completion == theirs["input_ids"]
    assert [-100] * len(prompt) + completion == theirs["labels"]


def test_text_is_encoded_at_its_border_as_it_is_generated_and_not_together_as_in_trl():
    tokenizer, row = tokenizer_with("turns"), {"prompt": "The ans", "chosen": "wer", "rejected": "wer is 5"}
    theirs = prepared(trl.DPOTrainer, options(trl.DPOConfig), dict(row), tokenizer)
    prompt, chosen, _ = of_pair(row, tokenizer)
    assert tokenizer.decode(prompt) == row["prompt"] and tokenizer.decode(theirs["prompt_ids"]) != row["prompt"]
    assert tokenizer.decode(theirs["prompt_ids"] + theirs["chosen_ids"]) == tokenizer.decode(prompt + chosen)


def test_an_answer_ends_with_the_token_that_generation_ends_at_and_not_behind_it_as_in_trl():
    """Gemma's form: the tokenizer's end of sequence is another token than the one that ends a turn."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    turn_end, tokenizer.eos_token = tokenizer.convert_tokens_to_ids(EOS_TOKEN), PAD_TOKEN
    row = PAIRS["chat"]
    theirs = prepared(trl.DPOTrainer, options(trl.DPOConfig), dict(row), tokenizer)
    read_row = read(row, "dpo", tokenizer)
    ours = read_preferences(read_row, tokenizer, WrittenSettings(), True, [turn_end]).rollouts.completions()
    for ids, name in zip(ours, ("chosen_ids", "rejected_ids"), strict=True):
        assert [*ids.tolist(), *tokenizer("\n").input_ids] == theirs[name] and ids[-1] == turn_end
    without = read_preferences(read_row, tokenizer, WrittenSettings(), True).rollouts.completions()
    assert tokenizer.decode(without[0]) == f"blue{EOS_TOKEN}\n{PAD_TOKEN}"


TURN_AND_TEXT_END = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}"
)
"""Phi 3's and 4's form: behind the last turn the text ends too, with a token that ends generation as well."""


@pytest.mark.parametrize(
    ("completion", "read_as"),
    [
        ("blue", f"blue{EOS_TOKEN}"),
        (BLUE, f"blue{EOS_TOKEN}"),
        ([said("")], EOS_TOKEN),
        ([said(f"blue{EOS_TOKEN}green")], f"blue{EOS_TOKEN}"),
        (
            [said("What of it?"), user("Its colour"), *BLUE],
            f"What of it?{EOS_TOKEN}\n<|im_start|>user\nIts colour{EOS_TOKEN}\n<|im_start|>assistant\nblue{EOS_TOKEN}",
        ),
        ([*BLUE, said("")], f"blue{EOS_TOKEN}\n<|im_start|>assistant\n{EOS_TOKEN}"),
    ],
)
def test_a_turn_ends_with_its_own_end_and_not_with_that_of_the_text_behind_it(completion, read_as):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TURN_AND_TEXT_END
    turn_end, tokenizer.eos_token = tokenizer.convert_tokens_to_ids(EOS_TOKEN), PAD_TOKEN
    rows = read({"prompt": ASKED, "completion": completion}, "sft", tokenizer)
    rollouts = demonstrations(rows, tokenizer, WrittenSettings(), [turn_end])
    assert tokenizer.decode(rollouts.completion_ids) == read_as
    rejected = "green" if isinstance(completion, str) else GREEN
    pair = read({"prompt": ASKED, "chosen": completion, "rejected": rejected}, "dpo", tokenizer)
    both = read_preferences(pair, tokenizer, WrittenSettings(), True, [turn_end]).rollouts.completions()
    assert [tokenizer.decode(ids) for ids in both] == [read_as, f"green{EOS_TOKEN}"]


def test_of_a_whole_conversation_the_last_answer_counts_alone_and_not_every_token_as_in_trl():
    tokenizer, row = tokenizer_with("turns"), {"messages": FIRST + BLUE}
    theirs = prepared(trl.SFTTrainer, options(trl.SFTConfig), dict(row), tokenizer, False, None)
    rollouts = demonstrations(read(row, "sft", tokenizer, messages_key="messages"), tokenizer, WrittenSettings())
    completion = rollouts.completion_ids.tolist()
    assert rollouts.prompts()[0].tolist() + completion == theirs["input_ids"] == theirs["labels"]
    assert tokenizer.decode(completion) == f"blue{EOS_TOKEN}"
