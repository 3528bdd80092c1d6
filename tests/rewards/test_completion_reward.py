"""Rewards of one method and one row, as the runner calls them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from grpo_lightning.rewards import CompletionReward, RewardContractError, RewardRunner, RewardState


@dataclass
class Seen(CompletionReward):
    """Writes down what it is given."""

    name: str = "seen"
    word: str = "a"
    word_key: str | None = None

    def __post_init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def score(self, completion, **row):
        self.rows.append(row | {"completion": completion})
        if completion == "slow":
            raise TimeoutError("out of time")
        return float(self.of_row("word", row) in completion)


def scored(reward: CompletionReward, completions: list[Any], **columns: list[Any]):
    runner = RewardRunner([reward])
    try:
        return runner.score(
            prompts=["p", "q"],
            completions=completions,
            completions_ids=[[1], [2, 3]],
            columns=columns,
            trainer_state=RewardState(global_step=7),
            group=[0, 1],
        )
    finally:
        runner.close()


def test_a_row_is_its_columns_its_prompt_its_tokens_and_the_state_of_the_run():
    reward = Seen()
    table = scored(reward, ["ab", [{"role": "assistant", "content": "b"}]], answer=["x", "y"])
    assert table.values.squeeze(1).tolist() == [1.0, 0.0]
    seen = sorted(reward.rows, key=lambda row: row["prompt"])
    assert [row.pop("trainer_state").global_step for row in seen] == [7, 7]
    assert seen == [
        {"answer": "x", "prompt": "p", "completion_ids": [1], "completion": "ab"},
        {"answer": "y", "prompt": "q", "completion_ids": [2, 3], "completion": "b"},
    ]


def test_a_completion_that_ran_out_of_time_has_no_value_and_is_counted_and_the_others_have_theirs():
    table = scored(Seen(), ["slow", "a"])
    assert str(table.values.squeeze(1).tolist()) == "[nan, 1.0]"
    assert table.metrics["rewards/seen/errors"] == 1


def test_a_setting_may_be_a_column_and_one_that_is_missing_is_named():
    assert scored(Seen(word_key="w"), ["ab", "ab"], w=["b", "c"]).values.squeeze(1).tolist() == [1.0, 0.0]
    with pytest.raises(RewardContractError, match="needs the column word_key='nothing'"):
        Seen(word_key="nothing")(prompts=["p"], completions=["a"])


def test_a_column_called_completion_does_not_take_the_place_of_the_policys():
    """Of data with prompts and completions, as for supervised training; it was a TypeError at every call."""
    assert scored(Seen(), ["ab", "cd"], completion=["c", "a"]).values.squeeze(1).tolist() == [1.0, 0.0]
