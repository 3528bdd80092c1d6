"""The examples of docs/rewards.md run as they stand."""

from __future__ import annotations

import importlib
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_lightning.rewards import get_reward_function, list_reward_functions
from grpo_lightning.rewards.registry import REWARD_FUNCTIONS

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"(?:^(?:    .*)?\n)+", PAGE, re.MULTILINE) if block.strip()]


def block(start: str) -> str:
    return next(one.strip("\n") for one in BLOCKS if one.strip("\n").startswith(start))


def test_the_ten_lines_and_their_test_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, test = block("# my_rewards.py"), block("# test_my_rewards.py")
    body = source.partition("@register_reward")[2].splitlines()
    assert len(body) <= 10
    (tmp_path / "my_rewards.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        namespace: dict[str, Any] = {}
        exec(compile(test, "test_my_rewards.py", "exec"), namespace)
        namespace["test_short_lines_is_the_share_of_lines_within_the_limit"]()
        entry = yaml.safe_load(next(one for one in BLOCKS if "my_rewards.short_lines" in one))["model"]["rewards"][1]
        reward = get_reward_function(entry["class_path"], **entry["init_args"])
        assert (reward.name, reward.weight, reward.scope) == ("short_lines", 0.2, "completion")
        assert reward(prompts=["p"], completions=["x" * 90]) == [1.0]
    finally:
        REWARD_FUNCTIONS.pop("short_lines", None)
        importlib.invalidate_caches()


def test_the_page_names_every_registered_reward() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) - {"scope", "batch", "group", "completion"} == set(
        list_reward_functions()
    )
