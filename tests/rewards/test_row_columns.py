"""Columns that rewards read of each row: a run without them is refused before it begins."""

from __future__ import annotations

from typing import Any

import pytest

from grpo_lightning.rewards import RewardContractError, RewardRunner, resolve_rewards

URL = "http://127.0.0.1:9/v1/chat/completions"


@pytest.mark.parametrize(
    ("name", "settings", "column"),
    [
        ("accuracy", {}, "answer"),
        ("accuracy", {"answer_key": "truth"}, "truth"),
        ("code_execution", {"unsafe": True}, "test_list"),
        ("code_execution", {"unsafe": True, "test_key": "checks"}, "checks"),
        ("no_hallucination", {}, "passage"),
        ("no_hallucination", {"context_key": "article"}, "article"),
        ("json_schema", {"schema_key": "form"}, "form"),
        ("language", {"language_key": "lang"}, "lang"),
        ("regex", {"pattern_key": "wanted"}, "wanted"),
        ("llm_judge", {"url": URL, "model": "judge", "reference_key": "model_answer"}, "model_answer"),
    ],
)
def test_data_without_the_column_is_refused_by_its_name_and_with_it_is_not(
    name: str, settings: dict[str, Any], column: str
) -> None:
    runner = RewardRunner(resolve_rewards([{"class_path": name, "init_args": settings}]))
    runner.check_columns(["question", column])
    with pytest.raises(RewardContractError, match=f"Reward '{name}' .*\\b{column}\\b"):
        runner.check_columns(["question"])


def test_a_reward_that_names_no_column_needs_none() -> None:
    given = [{"class_path": "json_schema", "init_args": {"schema": {"type": "object"}}}]
    given += [{"class_path": "llm_judge", "init_args": {"url": URL, "model": "judge"}}]
    RewardRunner(resolve_rewards(given)).check_columns(["question"])
