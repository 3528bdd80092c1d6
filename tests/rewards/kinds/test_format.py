"""Tests of the format reward."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from grpo_lightning.rewards import FormatReward, RewardRunner


def score(reward: FormatReward, *completions: Any, **kwargs: Any) -> list[float | None]:
    return reward(prompts=["p"] * len(completions), completions=list(completions), **kwargs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        (" \n<think>a\nb</think>\n\n<answer>\nc\n</answer>\n", 1.0),
        ("<think></think><answer>b</answer>", 0.0),
        ("<think> \n</think><answer>b</answer>", 0.0),
        ("<think>\u200b</think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>\u200b</answer>", 0.0),
        ("<think>a</think><answer>\x00</answer>", 0.0),
        ("<think>a</think><answer>\u2060 \ufeff</answer>", 0.0),
        ("<think>a</think><answer>\U0001f600</answer>", 1.0),
        ("<think>a</think><answer> </answer>", 0.0),
        ("<think>a</think><answer>b</answer> done", 0.0),
        ("Sure! <think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think> so <answer>b</answer>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a<answer>b</answer></think>", 0.0),
        ("<think><answer>b</think></answer>", 0.0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0),
        ("<think><think>a</think></think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b", 0.0),
        ("<THINK>a</THINK><answer>b</answer>", 0.0),
        ("<think>" * 200_000 + "</answer>", 0.0),
        ("", 0.0),
    ],
    ids=lambda value: str(value)[:60],
)
def test_only_one_think_block_followed_by_one_answer_block_is_right(text: str, expected: float) -> None:
    assert score(FormatReward(), text) == [expected]


def test_the_template_may_have_opened_the_think_block() -> None:
    reward = FormatReward(think_in_prompt=True)
    assert score(reward, "a</think><answer>b</answer>", "<think>a</think><answer>b</answer>") == [1.0, 0.0]


def test_a_pattern_must_match_all_or_somewhere() -> None:
    assert score(FormatReward(pattern=r"a.b"), "a\nb", "xa-b") == [1.0, 0.0]
    assert score(FormatReward(pattern=r"a.b", match="search"), "a\nb", "xa-b", "ab") == [1.0, 1.0, 0.0]


def test_a_catastrophic_pattern_gives_none_for_that_completion_alone() -> None:
    errors: dict[int, str] = {}
    reward = FormatReward(pattern=r"(a|aa)+$", time_limit=0.2)
    values = score(reward, "aaa", "a" * 200 + "b", "b", log_error=errors.__setitem__)
    assert values == [1.0, None, 0.0]
    assert set(errors) == {1} and "time_limit=0.2 s" in errors[1]


def test_a_conversation_is_judged_by_the_text_of_the_assistant() -> None:
    assert score(FormatReward(), [{"role": "assistant", "content": "<think>a</think><answer>b</answer>"}]) == [1.0]


def test_a_pattern_reward_survives_pickling() -> None:
    assert score(pickle.loads(pickle.dumps(FormatReward(pattern="a+"))), "aa", "b") == [1.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "(a"}, r"pattern='\(a' is no regular expression"),
        ({"match": "search"}, "match=search has no effect without pattern"),
        ({"pattern": "a", "match": "prefix"}, "match='prefix' is unknown"),
        ({"pattern": "a", "think_in_prompt": True}, "think_in_prompt has no effect on a pattern"),
        ({"time_limit": 0}, "time_limit=0 seconds"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FormatReward(**settings)


def test_the_runner_scores_with_it_although_it_offers_loggers_too():
    runner = RewardRunner([FormatReward(name="format")])
    try:
        table = runner.score(["p"] * 2, ["<think>a</think><answer>b</answer>", "b"], [[1], [2]], {"city": ["x", "y"]})
    finally:
        runner.close()
    assert table.values[:, 0].tolist() == [1.0, 0.0]
    assert table.metrics["rewards/format/errors"] == 0
