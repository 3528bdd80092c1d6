"""TRL's forms of preference data, and rows that are none."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from grpo_lightning.datamodules.converters import get_dataset_converter
from grpo_lightning.datamodules.prompts.converted_rows import convert_row
from grpo_lightning.datamodules.written.demonstrations import WrittenSettings
from grpo_lightning.datamodules.written.preferences import read_preferences
from grpo_lightning.types import PromptBatch

ASK = {"role": "user", "content": "What colour is the sky?"}
BLUE, GREEN = ({"role": "assistant", "content": colour} for colour in ("It is blue.", "It is green."))
SKY = {"prompt": [ASK], "chosen": [BLUE], "rejected": [GREEN]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, None),
        (
            {"chosen": "The sky is blue.", "rejected": "The sky is green."},
            {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        ),
        (SKY, None),
        ({"chosen": [ASK, BLUE], "rejected": [ASK, GREEN]}, SKY),
        ({"prompt": ASK["content"], "chosen": [ASK, BLUE], "rejected": [ASK, GREEN]}, SKY),
        ({"prompt": [ASK], "chosen": [ASK, BLUE], "rejected": [ASK, GREEN]}, SKY),
        ({"prompt": ASK["content"], "chosen": [BLUE], "rejected": [GREEN]}, SKY),
    ],
)
def test_the_forms_of_trl_become_prompt_chosen_and_rejected(row, expected):
    assert get_dataset_converter("dpo")(row) == (expected or row)


@pytest.mark.parametrize(
    "row", [{"chosen": "The sky is blue.", "rejected": "The sky is green."}, {"chosen": "ab", "rejected": "ac"}]
)
def test_an_implicit_prompt_ends_where_trl_ends_it(row):
    extract = pytest.importorskip("trl").extract_prompt
    assert get_dataset_converter("dpo")(row) == extract(row)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "no completion under rejected_key='rejected'"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "no completion under chosen_key='chosen'"),
        ({"chosen": "yes", "rejected": "no"}, "there is no prompt, and the two completions begin differently"),
        ({"chosen": [ASK], "rejected": [ASK]}, "completions begin differently, or one of them is a single message"),
        (
            {"chosen": [ASK], "rejected": [ASK, BLUE]},
            "completions begin differently, or one of them is a single message",
        ),
        ({"chosen": [BLUE], "rejected": [BLUE]}, "completions begin differently, or one of them is a single message"),
        ({"chosen": "yes", "rejected": "yes!"}, "one of the two completions begins with the whole other one"),
        ({"prompt": [ASK], "chosen": [BLUE], "rejected": "green"}, "one is text and the other messages"),
        (
            SKY | {"rejected": [{**GREEN, "content": None}]},
            "'rejected' has a message of the assistant with the content null",
        ),
    ],
)
def test_rows_that_are_no_pairs_are_refused(row, message):
    with pytest.raises(ValueError, match=message):
        get_dataset_converter("dpo")(row)


def test_columns_have_other_names_and_settings_of_prompts_apply():
    convert = get_dataset_converter(
        "dpo", prompt_key="q", chosen_key="good", rejected_key="bad", system_prompt="Be brief."
    )
    row = convert({"q": "Sky?", "good": "Blue", "bad": "Green", "source": 7})
    assert row["prompt"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sky?"}]
    assert (row["chosen"], row["rejected"], row["source"]) == ("Blue", "Green", 7)


def test_of_messages_only_those_that_call_a_tool_say_nothing():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    asked = [ASK, call, {"role": "tool", "content": "blue"}]
    assert get_dataset_converter("grpo")({"prompt": asked})["prompt"] == asked
    with pytest.raises(ValueError, match="'prompt' has a message of the assistant with the content null"):
        get_dataset_converter("grpo")({"prompt": [ASK, {**call, "tool_calls": []}]})


@pytest.mark.parametrize("label", [None, "yes", 3])
def test_a_label_is_true_or_false(label):
    with pytest.raises(ValueError, match="neither true nor false"):
        get_dataset_converter("kto")({"prompt": "a", "completion": "b", "label": label})


def test_a_pair_is_two_completions_of_one_prompt_that_end_once(tiny_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    prompts = ["2+3=", "1+1="]
    batch = PromptBatch(
        prompts,
        tokenizer(prompts).input_ids,
        [0, 1],
        {"chosen": ["5", "2"], "rejected": ["6<|im_end|>", "11"]},  # some datasets have written the end
    )
    read = read_preferences(batch, tokenizer, WrittenSettings(max_completion_length=10), in_pairs=True)
    texts = [tokenizer.decode(ids) for ids in read.rollouts.completions()]
    assert texts == ["5<|im_end|>", "6<|im_end|>", "2<|im_end|>", "11<|im_end|>"]
    assert read.rollouts.group.tolist() == [0, 0, 1, 1]
    assert read.is_chosen.tolist() == [True, False, True, False]
    joint = read.examples()
    assert joint.completion_lengths.tolist() == [4, 5] and joint.num_prompts == 2


def test_labelled_rows_without_their_converter_are_told_of_it():
    with pytest.raises(ValueError, match=r"chosen_key='chosen' is not a column.*read with data.converter=kto"):
        get_dataset_converter("dpo").check_columns(["prompt", "completion", "label"])


HALF = "2\ud83d"


@pytest.mark.parametrize("row", [{"prompt": HALF}, {"chosen": HALF}, {"rejected": [{**GREEN, "content": HALF}]}])
def test_half_a_character_is_refused_with_its_row_and_column(row):
    whole = {"prompt": "1+1=", "chosen": "2", "rejected": "3 \U0001f600"}
    assert convert_row(whole, lambda given: dict(given), "rows.jsonl, row 6")["rejected"] == "3 \U0001f600"
    with pytest.raises(ValueError, match=f"rows.jsonl, row 7: '{next(iter(row))}' holds half of a surrogate pair"):
        convert_row(whole | row, lambda given: dict(given), "rows.jsonl, row 7")
