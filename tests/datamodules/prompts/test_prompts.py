"""Prompts as token ids, the way TRL makes them; errors that name the row."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from toy_models import build_tokenizer

from grpo_lightning.datamodules import GRPODatasetConverter
from grpo_lightning.datamodules.prompts.converted_rows import replaced_text
from grpo_lightning.datamodules.prompts.dataset import PromptDataset
from grpo_lightning.datamodules.prompts.form import PromptForm

TOKENIZER = build_tokenizer()


def prompts(rows: list[dict[str, Any]], **settings: Any) -> PromptDataset:
    form = {name: settings.pop(name) for name in ("chat_template_kwargs", "replace_text") if name in settings}
    convert = settings.pop("convert", GRPODatasetConverter())
    return PromptDataset(rows, convert, PromptForm(TOKENIZER, **form), "a.jsonl", **settings)


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_text_is_tokenised_with_the_tokenizers_own_special_tokens() -> None:
    tokenizer = build_tokenizer()
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    batch = PromptDataset([{"prompt": "1 + 1"}], GRPODatasetConverter(), PromptForm(tokenizer), "a").batch([0])
    assert batch.prompt_ids[0][0] == start
    assert tokenizer.decode(batch.prompt_ids[0][1:]) == "1 + 1"


def test_a_conversation_goes_through_the_chat_template_with_the_generation_prompt() -> None:
    batch = prompts([{"prompt": chat("1 + 1")}]).batch([0])
    text = "<|im_start|>user\n1 + 1<|im_end|>\n<|im_start|>assistant\n"
    assert batch.prompt_ids[0] == TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert batch.prompts == [chat("1 + 1")]


def test_chat_template_kwargs_reach_the_template() -> None:
    template = "{{ mood }}:{{ messages[0]['content'] }}"
    batch = prompts([{"prompt": chat("hi")}], chat_template_kwargs={"mood": "calm", "chat_template": template}).batch(
        [0]
    )
    assert TOKENIZER.decode(batch.prompt_ids[0]) == "calm:hi"


def test_a_mixture_of_text_and_conversations_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row 0 is text, that of row 2 is a conversation"):
        prompts([{"prompt": "plain"}, {"prompt": "plain"}, {"prompt": chat("talk")}])


def test_a_reward_that_changes_its_batch_does_not_change_the_next_one() -> None:
    data = prompts([{"prompt": chat("1 + 1"), "answers": ["2"]}])
    batch = data.batch([0])
    batch.prompts[0].append({"role": "assistant", "content": "2"})
    batch.columns["answers"][0].clear()
    again = data.batch([0])
    assert (again.prompts, again.columns) == ([chat("1 + 1")], {"answers": [["2"]]})


def test_rows_beyond_one_tokeniser_call_keep_their_places() -> None:
    many = prompts([{"prompt": f"number {index}"} for index in range(2100)])
    places = [2099, 0, 1023, 1024, 1025]
    assert [TOKENIZER.decode(ids) for ids in many.batch(places).prompt_ids] == [f"number {place}" for place in places]


def test_columns_reach_the_batch_in_step_and_are_none_where_a_row_lacks_them() -> None:
    batch = prompts([{"prompt": "a", "level": 1}, {"prompt": "b", "kind": "x"}]).batch([1, 0])
    assert batch.prompts == ["b", "a"]
    assert batch.columns == {"level": [None, 1], "kind": ["x", None]}


def test_an_empty_batch_has_the_columns_of_the_others() -> None:
    batch = prompts([{"prompt": "a", "level": 1}]).batch([])
    assert len(batch) == 0 and batch.columns == {"level": []}


def test_overlong_prompts_are_dropped_and_counted_and_uids_stay_row_numbers() -> None:
    rows = [{"prompt": "zz"}, {"prompt": "z" * 50}, {"prompt": "zzz"}, {"prompt": "z" * 51}, {"prompt": "z"}]
    short = prompts(rows, max_prompt_length=3)
    assert (len(short), short.num_dropped, short.uids, short.lengths) == (3, 2, [0, 2, 4], [2, 3, 1])
    batch = short.batch([2, 1])
    assert (batch.prompts, batch.uids) == (["z", "zzz"], [4, 2])
    assert [len(ids) for ids in batch.prompt_ids] == [1, 3]


def test_overlong_prompts_are_refused_by_setting_with_the_row_and_both_lengths() -> None:
    with pytest.raises(ValueError, match=r"a.jsonl, row 1 has a prompt of 9 tokens, above data.max_prompt_length=8"):
        prompts([{"prompt": "z"}, {"prompt": "z" * 9}], max_prompt_length=8, overlong_prompts="refuse")


def test_a_limit_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"All 2 prompts of a.jsonl are longer than data.max_prompt_length=2.*has 5"):
        prompts([{"prompt": "zzzzz"}, {"prompt": "zzzzzz"}], max_prompt_length=2)


def test_text_is_replaced_in_order_in_prompts_and_in_the_content_of_messages() -> None:
    swaps = {"a": "b", "b": "c"}
    assert replaced_text("ab", swaps) == "cc"
    assert replaced_text([{"role": "a", "content": "ab"}], swaps) == [{"role": "a", "content": "cc"}]
    parts = [{"type": "text", "text": "ab"}, {"type": "image"}]
    assert replaced_text([{"role": "a", "content": parts}], swaps)[0]["content"] == [
        {"type": "text", "text": "cc"},
        {"type": "image"},
    ]
    batch = prompts([{"prompt": chat("<hint>1 + 1"), "note": "<hint>"}], replace_text={"<hint>": ""}).batch([0])
    assert batch.prompts == [chat("1 + 1")]
    assert batch.columns == {"note": ["<hint>"]}


@pytest.mark.parametrize(
    "written",
    [
        None,
        7,
        [{"role": "assistant", "tool_calls": [{"name": "add"}]}],
        [{"role": "user", "content": ["a", 3, {"type": "text", "text": None}]}],
    ],
)
def test_what_is_no_text_is_left_to_those_who_refuse_it(written) -> None:
    assert replaced_text(written, {"a": "b"}) == written


def test_a_row_that_cannot_be_converted_is_quoted_with_its_place_and_keys() -> None:
    with pytest.raises(ValueError, match=r"a.jsonl, row 1 cannot be converted: .*Keys found: text, n"):
        prompts([{"prompt": "a"}, {"text": "b", "n": 1}])
    with pytest.raises(
        ValueError, match=r"a.jsonl, row 0 cannot be converted: KeyError: 'question' Keys found: prompt"
    ):
        prompts([{"prompt": "a"}], convert=lambda row: {"prompt": row["question"]})


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda row: None, "row 0: the converter returned None, not a dict with 'prompt'"),
        (lambda row: {"prompt": 3}, "row 0: the converter returned {'prompt': 3}"),
        (lambda row: {"prompt": ""}, "row 0 has an empty prompt. Keys found: x"),
        (lambda row: {"prompt": []}, "row 0 has an empty prompt"),
        (lambda row: {"prompt": "a", "completions": 1}, "the column 'completions', a name under which rewards"),
        (lambda row: {"prompt": "a", "log_error": 1}, "the column 'log_error', a name under which rewards"),
    ],
)
def test_what_a_converter_returns_is_checked(convert: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompts([{"x": 1}], convert=convert)


def test_conversations_need_a_chat_template_that_takes_them() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match=r"cannot be applied to the prompts of a.jsonl: roles must alternate"):
        PromptDataset([{"prompt": chat("a")}], GRPODatasetConverter(), PromptForm(tokenizer), "a.jsonl")
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"a.jsonl has conversational prompts, but the tokenizer .* no chat template"):
        PromptDataset([{"prompt": chat("a")}], GRPODatasetConverter(), PromptForm(tokenizer), "a.jsonl")


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"a.jsonl has no rows"):
        prompts([])
