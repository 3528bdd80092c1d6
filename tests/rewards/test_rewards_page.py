"""The examples of docs/rewards.md, and the reward in README.md, run as they stand."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo_lightning.rewards import FunctionReward, get_reward_function, list_reward_functions
from grpo_lightning.rewards.sandbox.python_source import parsed

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"(?:^(?:    .*)?\n)+", PAGE, re.MULTILINE) if block.strip()]
FENCED = re.findall(r"^```python\n(.*?)^```", README + PAGE, re.DOTALL | re.MULTILINE)

COMPLETIONS = ["so it is 42", "41\n" + "x" * 96]
EXPECTED = {
    "short_and_right": ({"ground_truth": ["42", "42"]}, [1 - 0.011, -0.099]),
    "short_lines": ({}, [1.0, 0.5]),
}
"""Reward written on a page -> further columns, and what it gives for ``COMPLETIONS``."""


def rewards_written() -> dict[str, str]:
    """Name -> source of its block, for every function of completions that README.md or docs/rewards.md defines."""
    sources = [*FENCED, *(one for one in BLOCKS if "def " in one)]
    return {
        node.name: source
        for source in sources
        for node in ast.walk(parsed(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any(argument.arg == "completions" for argument in node.args.args)
    }


@pytest.fixture(autouse=True)
def _without_the_pages_module(registry_as_it_was: None) -> Iterator[None]:
    yield
    sys.modules.pop("my_rewards", None)


def test_every_reward_written_on_a_page_has_expected_values() -> None:
    assert rewards_written().keys() == EXPECTED.keys()


@pytest.mark.parametrize("form", ["text", "chat"])
@pytest.mark.parametrize("name", EXPECTED)
def test_a_reward_written_on_a_page_reads_text_and_conversations(name: str, form: str) -> None:
    namespace: dict[str, Any] = {}
    exec(compile(rewards_written()[name], "my_rewards.py", "exec"), namespace)
    chat = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]
    columns, values = EXPECTED[name]
    reward = FunctionReward(function=namespace[name])
    given = reward(prompts=["p", "p"], completions=COMPLETIONS if form == "text" else chat, **columns)
    assert given == pytest.approx(values)


def block(start: str) -> str:
    return next(one.strip("\n") for one in BLOCKS if one.strip("\n").startswith(start))


def test_the_ten_lines_and_their_test_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, test = block("# my_rewards.py"), block("# test_my_rewards.py")
    body = source.partition("@register_reward")[2].splitlines()
    assert len(body) <= 10
    (tmp_path / "my_rewards.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    namespace: dict[str, Any] = {}
    exec(compile(test, "test_my_rewards.py", "exec"), namespace)
    namespace["test_short_lines_is_the_share_of_lines_within_the_limit"]()
    entry = yaml.safe_load(next(one for one in BLOCKS if "class_path: my_rewards.short_lines" in one))
    entry = entry["model"]["rewards"][1]
    reward = get_reward_function(entry["class_path"], **entry["init_args"])
    assert (reward.name, reward.weight, reward.scope) == ("short_lines", 0.2, "completion")
    assert reward(prompts=["p"], completions=["x" * 90]) == [1.0]


def test_the_page_names_every_registered_reward() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) - {"scope", "batch", "group", "completion"} == set(
        list_reward_functions()
    )
