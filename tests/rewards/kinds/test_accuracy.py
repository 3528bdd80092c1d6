"""Tests of the accuracy reward: what counts as right, where the answer is looked for, and hostile completions."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from grpo_lightning.rewards import AccuracyReward, RewardContractError
from grpo_lightning.rewards.grading.numeric import numbers_in
from grpo_lightning.rewards.grading.references import UnknownReferenceError, reference_texts
from grpo_lightning.rewards.text.boxes import boxed_answer
from grpo_lightning.rewards.text.extraction import inner_answer, lenient_answer, strict_answer


def score(reward: AccuracyReward, completions: list[Any], references: list[Any], **kwargs: Any) -> list[float | None]:
    return reward(prompts=["p"] * len(completions), completions=completions, ground_truth=references, **kwargs)


@pytest.fixture(scope="module")
def math_reward() -> Iterator[AccuracyReward]:
    reward = AccuracyReward(time_limit=2.0)
    yield reward
    reward.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think><answer>42</answer>", "42"),
        ("a</think> <answer> 42\n</answer>", "42"),  # the template opened <think>
        ("<answer>42</answer>", "42"),
        ("so <answer></answer> it is", ""),
        ("42", None),
        ("", None),
        ("<answer>42", None),
        ("</answer>42<answer>", None),
        ("<answer>41</answer><answer>42</answer>", None),
        ("<answer><answer>42</answer></answer>", None),
        ("<think><answer>42</answer></think>", None),
        ("<answer>42</answer><think>a</think>", None),
        ("<think>a<answer>42</answer>", None),
        ("</think><think><answer>42</answer>", None),
    ],
)
def test_strict_extraction_takes_the_one_answer_tag_in_order_and_nothing_else(text: str, expected: str | None) -> None:
    assert strict_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>1</answer> or <answer>2</answer>", "2"),
        (r"first \boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("2 + 2 = 4\n#### 1,234\nthanks 5", "1,234"),
        ("it costs 3 times $1,200.50.", "$1,200.50"),
        ("<think>7</think> so 8", "8"),
        ("<answer>1</answer></think>2", "2"),
        ("between 5-3", "5-3"),
        ("it is 2x", "2x"),
        ("so x is (1 + 3) / 2.", "(1 + 3) / 2"),
        (r"so $\frac{1}{2}$", r"\frac{1}{2}"),
        (r"\boxed{1} \boxed{2", None),
        ("<answer>1</answer> no, <answer>", None),
        ("minus \N{MINUS SIGN}7", "-7"),
        ("no number", "no number"),  # a text of a few words is its own answer
        ("a text of many words, none of which is said to be the answer", None),
        ("", None),
        ("<think>so \\boxed{7}", None),
        ("<think>so 8 <answer>7</answer>", "7"),
        ("<Answer>7</ANSWER></s>", "7"),
        ("#### Step 2: add 5\nThat makes 7.", "7"),
        ("#### 7\nThat makes 8.", "7"),
        ("A is wrong, so the answer is (B) because 3 < 4.", "B"),
        ("Answer: B. Rome", "B. Rome"),
        ("The answer is A or B.", "A or B"),
        ("The answer is at least 7", "at least 7"),
        ("The answer is a guess: 7", "7"),
        ("\uff14\uff12 and \u0664\u0662", "42 and 42"),  # full-width and Arabic digits
    ],
)
def test_lenient_extraction_prefers_tag_then_box_then_mark_then_last_number(text: str, expected: str | None) -> None:
    assert lenient_answer(text) == expected


def test_a_box_is_read_to_its_own_closing_brace() -> None:
    assert boxed_answer(r"\boxed{\{1, 2\}} so \boxed {a{b}c} d}") == "a{b}c"
    assert boxed_answer(r"\boxed{\left\{1\right\}}") == r"\left\{1\right\}"
    assert boxed_answer(r"\boxed{1} \boxed{2") is None  # cut off: the earlier box was not the final answer
    assert boxed_answer(r"so $\boxed 5$. Then \boxed\frac{1}{2}.") == r"\frac{1}{2}"  # TeX needs no braces
    assert boxed_answer(r"put it in \boxed format") is None


def test_boxes_with_only_separators_between_them_are_one_list() -> None:
    assert boxed_answer(r"$x = \boxed{2}$ or $x = \boxed{3}$") == "2 or 3"
    assert boxed_answer(r"\boxed{2}. Then \boxed{3}") == "3"
    assert boxed_answer(r"\boxed{3}\n\n\boxed{3}".replace(r"\n", "\n")) == "3"
    assert boxed_answer(r"\boxed{\boxed{4}}") == r"\boxed{4}"


def test_worked_references_give_their_final_answer() -> None:
    assert inner_answer("48/2 = 24\n48+24 = 72\n#### 72") == "72"
    assert inner_answer(r"Hence $x = \boxed{3}$.") == "3"
    assert inner_answer(" Paris ") == "Paris"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,234,567.5", [Fraction("1234567.5")]),
        ("12,34", [12, 34]),
        ("-$5", [-5]),
        ("$-5", [-5]),
        (r"\$18 per day", [18]),
        ("3/4", [Fraction(3, 4)]),
        ("1 1/2", [Fraction(3, 2)]),
        (r"-\frac{3}{4}", [Fraction(-3, 4)]),
        (r"2\dfrac12", [Fraction(5, 2)]),
        (".5", [Fraction(1, 2)]),
        ("1.5e-3", [Fraction("0.0015")]),
        ("10-3", [10, 3]),
        ("10 -3", [10, -3]),
        ("(-3)", [-3]),
        ("1/0", []),
        ("9" * 101, []),
        ("1e999999999", [1, 999999999]),
        ("\uff14\uff12", []),
        ("1{,}000", [1000]),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, values: list[Any]) -> None:
    assert [number.value for number in numbers_in(text)] == values


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("1,200", "1200", 1.0),
        ("$1,200.00", "... #### 1,200", 1.0),
        ("42 apples", "42", 1.0),
        ("0.75", r"\frac{3}{4}", 1.0),
        ("50%", "0.5", 1.0),
        ("50%", "50", 1.0),
        ("0.5", "50%", 1.0),
        ("0.5%", "50%", 0.0),
        ("-3", "3", 0.0),
        ("0.333", "1/3", 0.0),
        ("0.3333333", "1/3", 1.0),
        ("1000001", "1000000", 0.0),
        ("41 or 42", "42", 0.0),
        (r"\boxed{42}", "42", 1.0),
        ("", "42", 0.0),
        ("\uff14\uff12", "42", 1.0),
        ("__import__('os').getpid()", "42", 0.0),
    ],
)
def test_numeric_accuracy(answer: str, reference: str, expected: float) -> None:
    reward = AccuracyReward(mode="numeric", extraction="strict")
    assert score(reward, [f"<answer>{answer}</answer>"], [reference]) == [expected]


def test_exact_text_is_not_read_as_a_number() -> None:
    assert score(AccuracyReward(mode="exact"), ["<answer>042</answer>", "<answer>42</answer>"], ["42"] * 2) == [
        0.0,
        1.0,
    ]


def test_numeric_tolerances_are_inclusive_bounds_around_the_reference() -> None:
    absolute = AccuracyReward(mode="numeric", tolerance=0.5)
    assert score(absolute, ["10.5", "9.5", "10.51"], ["10"] * 3) == [1.0, 1.0, 0.0]
    relative = AccuracyReward(mode="numeric", tolerance=0.0, relative_tolerance=0.25)
    assert score(relative, ["125", "75", "126"], ["100"] * 3) == [1.0, 1.0, 0.0]
    millionth = AccuracyReward(mode="numeric", tolerance=1e-6)
    assert score(millionth, ["0.000001", "0.0000011"], ["0"] * 2) == [1.0, 0.0]


def test_without_a_tolerance_small_numbers_are_compared_by_their_share() -> None:
    reward = AccuracyReward(mode="numeric")
    completions = ["0.333333", "0.083333", "0.00001", "0.00002", "1000000.5"]
    assert score(reward, completions, ["1/3", "1/12", "0.00001", "0.00001", "1000000"]) == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_exact_accuracy_compares_text_up_to_white_space() -> None:
    completions = ["<answer>New  York\n</answer>", "<answer>new york</answer>", "<answer>York</answer>"]
    assert score(AccuracyReward(mode="exact"), completions, ["New York"] * 3) == [1.0, 0.0, 0.0]
    assert score(AccuracyReward(mode="exact", ignore_case=True), completions, ["New York"] * 3) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        (r"\frac{1}{2}", "0.5", 1.0),
        (r"\frac12", "1/2", 1.0),
        ("x = 42", "42", 1.0),
        ("(x-1)(x+1)", "x^2 - 1", 1.0),
        ("(x-1)(x+2)", "x^2 - 1", 0.0),
        (r"$\{2, 1\}$", r"\{1, 2\}", 1.0),
        ("41 or 42", "42", 0.0),
        ("18 dollars", "18", 1.0),
        (r"\sqrt{42}", "42", 0.0),
        (r"50\%", "0.5", 1.0),
        ("042", "42", 1.0),
        ("43", "42", 0.0),
        ("", "42", 0.0),
    ],
)
def test_math_accuracy(math_reward: AccuracyReward, answer: str, reference: str, expected: float) -> None:
    assert score(math_reward, [f"<answer>{answer}</answer>"], [reference]) == [expected]


def test_math_accuracy_works_outside_the_main_thread(math_reward: AccuracyReward) -> None:
    values: list[Any] = []
    thread = threading.Thread(target=lambda: values.extend(score(math_reward, [r"\boxed{2/4}"], ["0.5"])))
    thread.start()
    thread.join()
    assert values == [1.0]


def test_pathological_answers_become_none_and_the_others_are_scored(math_reward: AccuracyReward) -> None:
    errors: dict[int, str] = {}
    answers = ["9^{9^{9^{9}}}", r"\frac{2}{4}", r"\int_0^1 x^{x^{x^{x^x}}} dx", "2", r"\frac{3}{6}"]
    values = score(
        math_reward, [rf"\boxed{{{answer}}}" for answer in answers], ["1/2"] * 5, log_error=errors.__setitem__
    )
    assert values == [None, 1.0, None, 0.0, 1.0]
    assert set(errors) == {0, 2}
    assert "time_limit=2 s" in errors[0] and "9^{9^{9^{9}}}" in errors[0]


@pytest.mark.parametrize(
    "text",
    [
        "{" * 1_000_000,
        "\\boxed{" + "{" * 1_000_000,
        "\\boxed{" + "{" * 500_000 + "}" * 500_001,
        "\\boxed{" * 100_000,
        "<answer>" + "\\frac{1}" * 100_000 + "</answer>",
        "<answer>" * 100_000 + "</answer>" * 100_000,
        "9" * 1_000_000,
        "9," * 500_000,
        "1 " * 300_000,
        "-" * 1_000_000,
        "\\frac" * 200_000,
        "\\boxed{1}" * 100_000,
        "\\(" * 500_000,
        "$a$" * 300_000,
        "5)" * 300_000,
        "\\boxed{" + "(" * 900 + "}",
        "\\boxed{" + "9" * 900 + "}",
        "\\boxed{1e1000000000}",
        "\\boxed{2^{9999999}}",
        "\\boxed{" + "=" * 900 + "}",
        "\\boxed{" + "±" * 900 + "}",
        "#### " + "a " * 500_000 + ".\nx",
        "answer is " + "1 " * 500_000,
        "is" + "*" * 500_000 + "5",
        "x =" + "_" * 500_000 + " - 5",
        "is minus" + " " * 500_000 + "5",
        "Answer:" + "*" * 500_000 + " 5",
        "The answer is 5 " + "(a " * 300_000,
        "x" + " " * 1_000_000 + "<|a|>" * 1000,
        "\\boxed{1} or " * 80_000,
        "\\boxed{1} is not" + " " * 1_000_000,
        "\\boxed{1}" + ", wait no " * 100_000,
        "\\boxed{1} " + "\\boxed{1} is wrong. " * 50_000,
        "\\boxed{1} wait " + "the answer is " * 70_000,
        "is not \\boxed{1}" * 60_000,
        "<answer>" + "74\n" * 200_000 + "#### 72</answer>",
        "Step 1: " * 120_000,
        "\n1. " * 250_000,
        "see (step " * 90_000 + "3",
        "42_8" * 250_000,
        "March 5, " * 120_000 + "2024",
        "\N{CJK UNIFIED IDEOGRAPH-7B54}" * 500_000 + "7",
        "\\boxed{P(" + "(A)" * 300 + ")=1}",
        "E[" * 500_000,
        "",
        "\x00\ud800",
    ],
    ids=lambda text: f"{text[:12]!r} x {len(text)}",
)
def test_a_megabyte_of_garbage_is_wrong_in_every_mode(text: str, math_reward: AccuracyReward) -> None:
    modes = [math_reward] + [AccuracyReward(mode=mode) for mode in ("numeric", "exact")]
    modes += [AccuracyReward(mode=mode, extraction="strict") for mode in ("math", "numeric", "exact")]
    assert [score(reward, [text], ["42"]) for reward in modes] == [[0.0]] * 6


def test_all_digits_of_a_number_in_a_base_are_read(math_reward: AccuracyReward) -> None:
    completions = [rf"\boxed{{{'1' * 41}_2}}"] * 2  # 2**41 - 1; of the first 40 digits it would be 2**40 - 1
    assert score(math_reward, completions, ["2199023255551", "1099511627775"]) == [1.0, 0.0]


def test_any_of_several_references_will_do_and_no_reference_gives_none() -> None:
    reward = AccuracyReward(mode="exact")
    completions = ["<answer>b</answer>"] * 4
    assert score(reward, completions, [["a", "b"], ("c",), None, []]) == [1.0, 0.0, None, None]


def test_references_may_be_numbers_and_missing_ones() -> None:
    assert score(AccuracyReward(mode="numeric"), ["3", "2.5", "1"], [3, 2.5, float("nan")]) == [1.0, 1.0, None]


@pytest.mark.parametrize(
    ("reference", "texts"),
    [
        ({"aliases": ["NYC", "Big Apple"], "value": "New York"}, ["NYC", "Big Apple", "New York"]),
        ({"style": "rule", "ground_truth": "42"}, ["42"]),
        ({"ground_truth": {"target": ["a", "b"]}}, ["a", "b"]),
        ({"text": ["Peru", "Peru"], "answer_start": [1, 9]}, ["Peru"]),
        ([{"value": "1"}, {"value": "2"}], ["1", "2"]),
        ({"text": [], "answer_start": []}, []),
        (np.array(["a", "b"]), ["a", "b"]),
        (np.int64(4), ["4"]),
        (True, ["True"]),
        (Fraction(1, 2), ["1/2"]),
        (None, []),
    ],
    ids=str,
)
def test_references_in_the_shapes_of_known_datasets_are_read(reference: Any, texts: list[str]) -> None:
    assert reference_texts(reference) == texts


@pytest.mark.parametrize(
    "reference", [{"label": "x"}, [{"label": "x"}], {}, object()], ids=lambda value: repr(value)[:12]
)
def test_other_references_are_refused_and_never_turned_into_text(reference: Any) -> None:
    with pytest.raises(UnknownReferenceError):
        reference_texts(reference)
    with pytest.raises(RewardContractError, match=r"'accuracy': .*set answer_key to another column"):
        score(AccuracyReward(mode="exact"), [str(reference)], [reference])


def test_any_alias_of_a_reference_counts() -> None:
    reference = {"aliases": ["NYC"], "value": "New York"}
    completions = ["<answer>nyc</answer>", "<answer>New York</answer>", "<answer>Boston</answer>"]
    assert score(AccuracyReward(mode="exact", ignore_case=True), completions, [reference] * 3) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("reference", ["", " ", r"\frac{1}{", r"\boxed{", "2 +", r"\frac{1}{2}}", "5-"])
def test_a_reference_that_mathematics_cannot_read_is_none_for_every_answer(
    reference: str, math_reward: AccuracyReward
) -> None:
    errors: dict[int, str] = {}
    answers = ["1/2", "x", "east", "1, 2", ""]
    values = score(
        math_reward, [f"<answer>{one}</answer>" for one in answers], [reference] * 5, log_error=errors.__setitem__
    )
    assert values == [None] * 5
    assert len(errors) == 5 and "cannot be read as mathematics" in errors[0]


def test_a_reference_that_the_mode_cannot_read_is_an_error_of_that_row() -> None:
    errors: dict[int, str] = {}
    values = score(AccuracyReward(mode="numeric"), ["3", "3"], ["Paris", "3"], log_error=errors.__setitem__)
    assert values == [None, 1.0]
    assert "'Paris' is not one number" in errors[0]


def test_the_reference_column_is_found_or_set_or_named_missing() -> None:
    call: dict[str, Any] = {"prompts": ["p"], "completions": ["4"]}
    reward = AccuracyReward(mode="numeric")
    assert reward(**call, answer=["4"], solution=["5"]) == [1.0]
    assert reward(**call, solution=["5"]) == [0.0]
    assert AccuracyReward(mode="numeric", answer_key="gold")(**call, gold=["4"], answer=["5"]) == [1.0]
    with pytest.raises(RewardContractError, match=r"ground_truth or answer or solution.*gold, source"):
        reward(**call, gold=["4"], source=["x"])
    with pytest.raises(RewardContractError, match=r"'accuracy'.*column gold, the data has no further columns"):
        AccuracyReward(mode="numeric", answer_key="gold")(**call)


def test_a_conversation_is_scored_by_what_the_assistant_wrote() -> None:
    messages = [
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "99"},
        {"role": "assistant", "content": [{"type": "text", "text": "it is 42"}]},
    ]
    assert score(AccuracyReward(mode="numeric"), [messages], ["42"]) == [1.0]


def test_a_reward_with_running_workers_can_be_copied_and_pickled(math_reward: AccuracyReward) -> None:
    assert score(math_reward, [r"\boxed{2/4}"], ["0.5"]) == [1.0]
    for twin in (copy.deepcopy(math_reward), pickle.loads(pickle.dumps(math_reward))):
        assert twin == math_reward
        assert score(twin, [r"\boxed{2/4}"], ["0.5"]) == [1.0]
        twin.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "maths"}, "mode='maths' is unknown. Choose math, numeric or exact"),
        ({"extraction": "loose"}, "extraction='loose' is unknown. Choose strict or lenient"),
        ({"time_limit": 0}, "time_limit above 0"),
        ({"workers": 0}, "workers 1 or more"),
        ({"tolerance": -1}, "tolerances 0 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AccuracyReward(**settings)
