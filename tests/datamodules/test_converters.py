"""Converters: seed behaviour, the forms of prompts, what passes through and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from grpo_lightning.datamodules import (
    DATASET_CONVERTERS,
    DatasetConverter,
    GRPODatasetConverter,
    get_dataset_converter,
    register_converter,
)
from grpo_lightning.datamodules.converters import GSM8KDatasetConverter, SquadDatasetConverter, TextDatasetConverter


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.fixture
def scratch_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    entries = dict(DATASET_CONVERTERS)
    yield
    DATASET_CONVERTERS.clear()
    DATASET_CONVERTERS.update(entries)


def test_grpo_puts_the_query_on_its_own_line_before_the_prompt() -> None:
    assert GRPODatasetConverter()({"prompt": "1 + 1", "query": "Add:"}) == {"prompt": "Add:\n1 + 1"}


@pytest.mark.parametrize("row", [{"prompt": "only"}, {"query": "only"}, {"prompt": "only", "query": ""}])
def test_grpo_takes_whichever_of_query_and_prompt_the_row_has(row: dict[str, str]) -> None:
    assert GRPODatasetConverter()(row) == {"prompt": "only"}


def test_grpo_reads_the_keys_that_it_is_told_and_renames_the_ground_truth() -> None:
    row = {"q": "2 + 2", "instruction": "Add:", "gold": "4"}
    expected = {"prompt": "Add:\n2 + 2", "ground_truth": "4"}
    assert GRPODatasetConverter(prompt_key="q", query_key="instruction", ground_truth_key="gold")(row) == expected
    assert GRPODatasetConverter(prompt="q", query="instruction", ground_truth="gold")(row) == expected


def test_grpo_alternative_names_win_over_the_keys() -> None:
    assert GRPODatasetConverter(prompt_key="a", prompt="b")({"a": "no", "b": "yes"})["prompt"] == "yes"


def test_grpo_passes_the_seeds_columns_always_and_others_by_setting() -> None:
    row = {
        "prompt": "p",
        "answer": "4",
        "labels": [1],
        "category": "c",
        "metadata": {"k": 1},
        "level": 3,
        "source": "s",
    }
    seeds = {"prompt": "p", "answer": "4", "labels": [1], "category": "c", "metadata": {"k": 1}}
    assert GRPODatasetConverter()(row) == seeds | {"level": 3, "source": "s"}
    assert GRPODatasetConverter(pass_through=False)(row) == seeds
    assert GRPODatasetConverter(pass_through=["level"])(row) == seeds | {"level": 3}


def test_an_answer_column_that_is_the_ground_truth_stays_an_answer_too() -> None:
    converted = GRPODatasetConverter(ground_truth_key="answer")({"prompt": "p", "answer": "4"})
    assert converted == {"prompt": "p", "ground_truth": "4", "answer": "4"}


def test_converting_leaves_the_row_as_it_was() -> None:
    row = {"prompt": [user("1 + 1")], "query": "Add:"}
    GRPODatasetConverter(system_prompt="Think.")(row)
    assert row == {"prompt": [user("1 + 1")], "query": "Add:"}


def test_conversational_prompts_stay_conversational_without_the_keys_that_arrow_filled_in() -> None:
    message = {"role": "user", "content": "hi", "tool_calls": None, "name": "ann"}
    assert GRPODatasetConverter()({"prompt": [message]})["prompt"] == [{"role": "user", "content": "hi", "name": "ann"}]


def test_a_text_query_joins_the_last_user_message_of_a_conversation() -> None:
    prompt = [user("first"), {"role": "assistant", "content": "yes?"}, user("last")]
    assert GRPODatasetConverter()({"prompt": prompt, "query": "Q"})["prompt"] == [*prompt[:2], user("Q\nlast")]


def test_a_system_prompt_makes_text_conversational() -> None:
    converted = GRPODatasetConverter(system_prompt="Think.")({"prompt": "1 + 1"})["prompt"]
    assert converted == [{"role": "system", "content": "Think."}, user("1 + 1")]
    assert GRPODatasetConverter(conversational=True)({"prompt": "1 + 1"})["prompt"] == [user("1 + 1")]


def test_a_system_prompt_goes_before_a_conversation_and_never_beside_another() -> None:
    convert = GRPODatasetConverter(system_prompt="Think.")
    assert [message["role"] for message in convert({"prompt": [user("hi")]})["prompt"]] == ["system", "user"]
    with pytest.raises(ValueError, match="system message of its own"):
        convert({"prompt": [{"role": "system", "content": "Be brief."}, user("hi")]})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "1 + 1"},
            "neither prompt_key='prompt' nor query_key='query'. Keys found: question. .*data.converter_args.prompt_key",
        ),
        ({"prompt": 7}, "'prompt' holds 7, neither text nor a list of messages"),
        (
            {"prompt": [{"from": "human", "value": "hi"}]},
            "neither text nor a list of messages with 'role' and 'content'. Message 0 has from, value: rename from to role "
            "and rename value to content, human to user and gpt to assistant, in the file or in a converter",
        ),
        (
            {"prompt": [user("hi"), {"role": "user", "text": "so?"}]},
            "Message 1 has role, text: rename text to content, in",
        ),
        ({"prompt": [{"role": "user"}]}, "Message 0 has role: add content, in the file"),
        ({"prompt": ["hi"]}, "Entry 0 is no message: write {'role': 'user', 'content': 'hi'}\\."),
        ({"prompt": user("hi")}, "Put the message into a list."),
        ({"prompt": "p", "query": [user("q")]}, "the query is conversational and there is a prompt too"),
        ({"prompt": [{"role": "assistant", "content": "a"}], "query": "q"}, "no user message"),
    ],
)
def test_grpo_refuses_rows_that_hold_no_prompt(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GRPODatasetConverter()(row)


@pytest.mark.parametrize("setting", ["prompt_key", "query_key", "ground_truth_key"])
def test_a_key_that_was_set_and_that_no_row_has_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting}='misspelt' is not a column. Keys found: prompt, query"):
        GRPODatasetConverter(**{setting: "misspelt"}).check_columns(["prompt", "query"])
    with pytest.raises(ValueError, match="pass_through='misspelt' is not a column"):
        GRPODatasetConverter(pass_through=["misspelt"]).check_columns(["prompt"])
    GRPODatasetConverter().check_columns(["prompt"])


def test_gsm8k_takes_the_number_after_the_marks_and_keeps_the_reasoning() -> None:
    row = {"question": "How many?", "answer": "A #1 hit.\n500 * 2 = <<500*2=1000>>1000\n#### 1,000", "id": 5}
    assert GSM8KDatasetConverter()(row) == {
        "prompt": "How many?",
        "ground_truth": "1000",
        "chain_of_thought": "A #1 hit.\n500 * 2 = <<500*2=1000>>1000",
        "answer": row["answer"],
        "id": 5,
    }


@pytest.mark.parametrize("answer", ["so it is 72", "so it is\n#### ", ""])
def test_gsm8k_refuses_an_answer_without_a_final_number(answer: str) -> None:
    with pytest.raises(ValueError, match="no '#### answer' at its end"):
        GSM8KDatasetConverter()({"question": "q", "answer": answer})


def test_gsm8k_names_the_missing_column() -> None:
    with pytest.raises(ValueError, match=r"question_key='question' is not a column. Keys found: problem, answer"):
        GSM8KDatasetConverter()({"problem": "q", "answer": "#### 1"})


def test_squad_keeps_the_context_and_each_accepted_answer_once() -> None:
    answers = {"text": ["Peru", "Peru", "in Peru"], "answer_start": [11, 11, 8]}
    row = {"id": "x", "title": "Lima", "context": "Lima {is} in Peru.", "question": "Where?", "answers": answers}
    assert SquadDatasetConverter()(row) == {
        "prompt": "Lima {is} in Peru.\nWhere?",
        "ground_truth": ["Peru", "in Peru"],
        "context": "Lima {is} in Peru.",
        "id": "x",
        "title": "Lima",
    }


def test_squad_gives_an_unanswerable_question_an_answer_that_says_so() -> None:
    row = {"context": "c", "question": "q", "answers": {"text": [], "answer_start": []}}
    assert SquadDatasetConverter(unanswerable="no answer")(row)["ground_truth"] == ["no answer"]


def test_text_fills_a_template_in_from_the_columns() -> None:
    convert = TextDatasetConverter("{{x}} {a} and {b}", ground_truth_key="c")
    assert convert({"a": "{1}", "b": 2, "c": "3"}) == {
        "prompt": "{x} {1} and 2",
        "ground_truth": "3",
        "a": "{1}",
        "b": 2,
        "c": "3",
    }
    with pytest.raises(ValueError, match=r"a field of template='b' is not a column. Keys found: a, c"):
        convert({"a": 1, "c": 3})


@pytest.mark.parametrize("template", ["no fields", "{}", "{0}", "{a.__class__}", "{a[0]}"])
def test_text_refuses_templates_whose_fields_are_not_columns(template: str) -> None:
    with pytest.raises(ValueError, match="plain column names"):
        TextDatasetConverter(template)


VERL_ROW = {
    "prompt": "1 + 1",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra": {"q": {"text": "3 + 3"}},
}


def test_a_key_with_dots_reaches_into_a_column_of_dictionaries() -> None:
    convert = GRPODatasetConverter(ground_truth_key="reward_model.ground_truth", prompt_key="extra.q.text")
    convert.check_columns(VERL_ROW)
    row = convert(VERL_ROW)
    assert (row["prompt"], row["ground_truth"]) == ("3 + 3", "2")
    assert row["reward_model"] == VERL_ROW["reward_model"]  # only a part of it was used
    text = TextDatasetConverter("{prompt}", ground_truth_key="reward_model.ground_truth")
    text.check_columns(VERL_ROW)
    assert text(VERL_ROW)["ground_truth"] == "2"


def test_a_column_whose_name_has_dots_wins_over_a_path() -> None:
    convert = GRPODatasetConverter(ground_truth_key="a.b")
    assert convert({"prompt": "p", "a.b": "column", "a": {"b": "path"}})["ground_truth"] == "column"


def test_a_path_that_leads_nowhere_is_refused_with_the_keys_that_are_there() -> None:
    convert = GRPODatasetConverter(ground_truth_key="reward_model.truth")
    with pytest.raises(ValueError, match=r"'reward_model\.truth' leads nowhere: no 'truth' in style, ground_truth"):
        convert(VERL_ROW)
    with pytest.raises(ValueError, match="no 'truth' in '2'"):
        GRPODatasetConverter(ground_truth_key="reward_model.truth")({"prompt": "p", "reward_model": "2"})
    with pytest.raises(ValueError, match=r"ground_truth_key='model\.truth' is not a column"):
        GRPODatasetConverter(ground_truth_key="model.truth").check_columns(VERL_ROW)


def test_shipped_converters_are_registered() -> None:
    assert {"grpo", "gsm8k", "squad", "text"} <= set(DATASET_CONVERTERS)
    assert isinstance(get_dataset_converter("grpo", prompt_key="q"), GRPODatasetConverter)


def test_an_unknown_converter_lists_those_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"'grop' not found. Did you mean grpo\? Available converters: .*grpo, gsm8k, .*squad"
    ):
        get_dataset_converter("grop")


def test_an_argument_that_a_converter_does_not_take_is_refused_with_those_it_takes() -> None:
    with pytest.raises(ValueError, match=r"'grpo' takes no promt_key. It takes: .*prompt_key"):
        get_dataset_converter("grpo", promt_key="q")


@pytest.mark.usefixtures("scratch_registry")
def test_classes_and_functions_register_by_decorator_under_a_free_name() -> None:
    @register_converter("shout")
    def shout(example: dict[str, Any], mark: str = "!") -> dict[str, Any]:
        return {"prompt": example["text"].upper() + mark}

    @register_converter("whisper")
    class Whisper(DatasetConverter):
        def __call__(self, example: Any) -> dict[str, Any]:
            return self.make_row(example["text"].lower(), example, used=["text"])

    assert get_dataset_converter("shout", mark="?")({"text": "a"}) == {"prompt": "A?"}
    assert get_dataset_converter("whisper", system_prompt="s")({"text": "A"})["prompt"][1] == user("a")
    with pytest.raises(ValueError, match=r"'shout' takes no volume. It takes: mark"):
        get_dataset_converter("shout", volume=1)
    with pytest.raises(ValueError, match="'shout' is already registered"):
        register_converter("shout")(shout)


def test_a_converter_may_be_named_by_import_path() -> None:
    convert = get_dataset_converter("grpo_lightning.datamodules.GRPODatasetConverter", prompt_key="q")
    assert convert({"q": "hi"}) == {"prompt": "hi"}
    with pytest.raises(ValueError, match="cannot be imported: No module named 'no_such_package'"):
        get_dataset_converter("no_such_package.Converter")


@pytest.mark.parametrize(
    "content", [3, True, {"text": "hi"}, ["hi"], [3], [{"type": "text"}], [{"type": "text", "text": 5}]]
)
@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_content_that_is_neither_text_nor_parts_is_refused(content, role):
    """Chat templates fail on it in words of their own (can only concatenate str), or write it as Python does."""
    with pytest.raises(ValueError, match=f"'prompt' has a message of the {role} with the content .* neither text nor"):
        get_dataset_converter("grpo")({"prompt": [{"role": role, "content": content}]})


def test_parts_calls_and_what_tools_give_stay_as_they_are():
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "count", "arguments": {}}}]},
        {"role": "tool", "content": {"dots": 3}},
    ]
    assert get_dataset_converter("grpo")({"prompt": messages})["prompt"] == messages
