"""What reaches a chat template from a row, and tokens that do not belong into a prompt."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from tokenizers.processors import TemplateProcessing
from toy_models import build_tokenizer

from grpo_lightning.datamodules import GRPODataModule, GRPODatasetConverter
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.prompts.form import PromptForm

TEMPLATE = (
    "{% if tools %}tools={{ tools | tojson }};{% endif %}mood={{ mood }};"
    "{% for m in messages %}{{ m.role }}:{{ m.content }}{% if 'calls' in m %}!{% endif %};{% endfor %}"
)
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"a": {"type": "number"}}}}]
CHAT = [{"role": "user", "content": "Hi"}]


def texts(rows: Any, **settings: Any) -> list[str]:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    prompts = PromptDataset(rows, GRPODatasetConverter(), PromptForm(tokenizer, {"mood": "calm"}), "it", **settings)
    return [tokenizer.decode(ids) for ids in prompts.batch(range(len(prompts))).prompt_ids]


def test_the_tools_and_template_arguments_of_a_row_reach_its_template_alone() -> None:
    rows = [
        {"prompt": CHAT, "tools": TOOLS},
        {"prompt": CHAT, "tools": None, "chat_template_kwargs": {"mood": "merry"}},
        {"prompt": CHAT, "tools": []},
        {"prompt": CHAT, "tools": json.dumps(TOOLS), "chat_template_kwargs": '{"mood": "sad"}'},
    ]
    # jinja's tojson sorts keys
    tools = 'tools=[{"function": {"name": "add", "parameters": {"a": {"type": "number"}}}, "type": "function"}];'
    plain = texts(rows)
    assert [text.replace(json.dumps(TOOLS), "T").replace(tools[6:-1], "T") for text in plain] == [
        "tools=T;mood=calm;user:Hi;",
        "mood=merry;user:Hi;",
        "mood=calm;user:Hi;",
        "tools=T;mood=sad;user:Hi;",
    ]


def test_tools_of_a_table_reach_the_template_without_the_keys_that_arrow_adds(tmp_path: Path) -> None:
    others = [{"type": "function", "function": {"name": "now", "parameters": {"zone": {"type": "string"}}}}]
    rows = [{"prompt": CHAT, "tools": tools} for tools in (TOOLS, others)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    from grpo_lightning.datamodules import get_dataset

    assert texts(get_dataset(str(tmp_path / "rows.parquet"))) == texts(rows)
    assert "null" not in texts(get_dataset(str(tmp_path / "rows.parquet")))[0]


def test_tools_pass_a_converter_that_lets_nothing_else_through() -> None:
    row = GRPODatasetConverter(pass_through=False)({"prompt": CHAT, "tools": TOOLS, "level": 1})
    assert row == {"prompt": CHAT, "tools": TOOLS}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"tools": "add, subtract"}, r"row 0: tools holds text that is not JSON: 'add, subtract'"),
        ({"tools": {"name": "add"}}, r"row 0: tools holds \{'name': 'add'\}, not a list"),
        (
            {"chat_template_kwargs": {"padding": True}},
            r"row 0: chat_template_kwargs .* holds padding, which would change",
        ),
        ({"chat_template_kwargs": {"truncation": True, "max_length": 2}}, "holds max_length, truncation, which would"),
        ({"chat_template_kwargs": {"return_tensors": "pt"}}, "holds return_tensors, which would change"),
        ({"chat_template_kwargs": [1]}, r"row 0: chat_template_kwargs holds \[1\], not a mapping"),
    ],
)
def test_columns_that_no_template_can_take_are_quoted(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        texts([{"prompt": CHAT, **columns}])


def test_completions_to_imitate_are_read_behind_the_same_tools(tmp_path: Path) -> None:
    from grpo_lightning.datamodules.written.demonstrations import WrittenSettings, demonstrations

    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    rows = [{"prompt": CHAT, "completion": [{"role": "assistant", "content": "Yo"}], "tools": TOOLS}]
    batch = PromptDataset(rows, dict, PromptForm(tokenizer, {"mood": "calm"}), "it").batch([0])
    rollouts = demonstrations(batch, tokenizer, WrittenSettings(chat_template_kwargs={"mood": "calm"}))
    assert tokenizer.decode(rollouts.completion_ids[:-1]) == "assistant:Yo;"


# -- tokens that do not belong --------------------------------------------------------------------------------------


def with_special_tokens(template: str) -> Any:
    """A tokenizer that puts its tokens around a text as ``template`` says."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.bos_token = "<|im_start|>"
    tokens = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|im_end|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=tokens)
    return tokenizer


def prompt_text(tokenizer: Any, text: str) -> tuple[str, list[str]]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        prompts = PromptDataset([{"prompt": text}, {"prompt": text}], dict, PromptForm(tokenizer), "a.jsonl")
    messages = [str(one.message) for one in said if "tokenizer" in str(one.message)]
    return tokenizer.decode(prompts.batch([1]).prompt_ids[0]), messages


def test_a_text_that_starts_with_bos_has_it_once_and_the_double_is_told_once() -> None:
    text, said = prompt_text(with_special_tokens("<|im_start|> $A"), "<|im_start|>1 + 1")
    assert text == "<|im_start|>1 + 1"
    (message,) = said
    assert "2 prompts of a.jsonl start with '<|im_start|>', which the tokenizer adds too" in message
    assert prompt_text(with_special_tokens("<|im_start|> $A"), "1 + 1") == ("<|im_start|>1 + 1", [])
    # Two written by hand, and none added: they are meant.
    assert prompt_text(with_special_tokens("$A"), "<|im_start|>1") == ("<|im_start|>1", [])


def test_an_end_that_the_tokenizer_appends_is_left_out_and_told_once() -> None:
    tokenizer = with_special_tokens("<|im_start|> $A <|im_end|>")
    text, said = prompt_text(tokenizer, "1 + 1")
    assert text == "<|im_start|>1 + 1"
    assert len(said) == 1 and "appends '<|im_end|>' to 2 prompts of a.jsonl" in said[0]
    # One that the text itself ends with stays.
    assert prompt_text(tokenizer, "a<|im_end|>")[0] == "<|im_start|>a<|im_end|>"
    assert prompt_text(with_special_tokens("$A"), "a<|im_end|>") == ("a<|im_end|>", [])


# -- prompts that end with the solution -----------------------------------------------------------------------------

SOLVED = [{"prompt": [*CHAT, {"role": "assistant", "content": "Hello"}], "n": n} for n in range(2)]


def solution_warnings(rows: Any = SOLVED, template_kwargs: Any = None, **settings: Any) -> tuple[list[str], Any]:
    data = GRPODataModule(rows, eval_dataset=rows, batch_size=1, shuffle=False, **settings)
    data.tokenizer = build_tokenizer()
    if template_kwargs:
        data._reader.warnings.chat_template_kwargs = template_kwargs
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data.setup("fit")
    found = [str(one.message) for one in said if "assistant" in str(one.message)]
    return found, next(iter(data.train_dataloader()))


def test_a_prompt_that_ends_with_the_solution_is_pointed_out_once_with_the_ways_out() -> None:
    (message,), _ = solution_warnings()
    assert "2 of 2 prompts" in message and "data.converter_args.drop_solution to true" in message
    assert "continue_final_message: true" in message
    assert solution_warnings([{"prompt": CHAT}])[0] == []


def test_the_solution_is_taken_off_and_reaches_the_rewards() -> None:
    found, batch = solution_warnings(converter_args={"drop_solution": True})
    assert found == []
    assert (batch.prompts, batch.columns["solution"]) == ([CHAT], ["Hello"])
    assert build_tokenizer().decode(batch.prompt_ids[0]).endswith("Hi<|im_end|>\n<|im_start|>assistant\n")


def test_a_solution_that_is_meant_is_not_pointed_out() -> None:
    assert solution_warnings(converter_args={"drop_solution": False})[0] == []
    assert solution_warnings(template_kwargs={"continue_final_message": True})[0] == []


# -- roles that the template does not know ----------------------------------------------------------------------------

KNOWS_TWO = "{% for m in messages %}{% if m.role in ('user', 'assistant') %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"


def role_warnings(roles: list[str], template: str | None = None, tokens: Sequence[str] = ()) -> list[str]:
    data = GRPODataModule([{"prompt": [{"role": role, "content": "Hi"} for role in roles]}], batch_size=1)
    data.tokenizer = build_tokenizer()
    data.tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    data.tokenizer.chat_template = template or data.tokenizer.chat_template
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data.setup("fit")
    return [str(one.message) for one in said if "the role" in str(one.message)]


def test_a_message_that_the_template_leaves_out_is_said() -> None:
    (message,) = role_warnings(["system", "user"], KNOWS_TWO)
    assert "role 'system' (row 0), which the chat template leaves out" in message
    (message,) = role_warnings(["user", "human"], KNOWS_TWO)
    assert (
        "role 'human' (row 0), which the chat template leaves out" in message and "Rename the role to user," in message
    )
    assert role_warnings(["user", "assistant", "user"], KNOWS_TWO) == []


def test_a_role_that_the_template_writes_as_any_word_is_said() -> None:
    (message,) = role_warnings(["system", "human"])
    assert "role 'human' (row 0), which the chat template writes as it would any other word" in message
    assert "rename it to user: roles" in message
    assert role_warnings(["system", "user"]) == []
    as_glm = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    (message,) = role_warnings(["observation", "user"], as_glm)
    assert "role 'observation' (row 0), which the chat template writes as it would any other word" in message
    assert role_warnings(["observation", "user"], as_glm, ["<|observation|>"]) == []
    named = "{% for m in messages %}{% if m.role == 'context' %}<documents>{% endif %}{{ m.content }}{% endfor %}"
    assert role_warnings(["context", "user"], named) == []


def test_a_message_without_a_role_is_taken_where_the_template_asks_for_none() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    for message in ({"content": "Hi"}, {"role": None, "content": "Hi"}):
        data = GRPODataModule([{"prompt": [message]}], batch_size=1, converter=dict)
        data.tokenizer = build_tokenizer()
        data.tokenizer.chat_template = template
        data.setup("fit")
        (batch,) = data.train_dataloader()
        assert data.tokenizer.decode(batch.prompt_ids[0]) == "Hi"
