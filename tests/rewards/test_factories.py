"""Tests of rewards that a config names by path and that are neither a reward class nor a plain function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from grpo_lightning.rewards import RewardSpec, get_reward_function, resolve_rewards
from grpo_lightning.rewards.registry import is_factory

MODULE = """
import functools

def get_cosine(low=-1.0, high=1.0):
    def cosine(completions, **kwargs):
        return [high if len(text) < 3 else low for text in completions]
    return cosine

def get_with_kwargs(**settings):
    def reward(completions, **kwargs):
        return [settings["value"]] * len(completions)
    return reward

def get_partial(scale):
    return functools.partial(scaled, scale=scale)

def scaled(completions, scale, **kwargs):
    return [scale * len(text) for text in completions]

def by_kwargs(**kwargs):
    return [1.0 for _ in kwargs["completions"]]

def get_instance(name="Ada"):
    return Plain(offset=len(name))

def get_async():
    async def reward(completions, **kwargs):
        return [9.0] * len(completions)
    return reward

def get_nothing(limit=3):
    return None

class Plain:
    def __init__(self, offset=0.0):
        self.offset = offset

    def __call__(self, completions, **kwargs):
        return [self.offset + len(text) for text in completions]

    @classmethod
    def of_class(cls, completions, **kwargs):
        return [5.0] * len(completions)

made = Plain(7.0)

class Mute:
    pass
"""


@pytest.fixture(scope="module", autouse=True)
def user_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    root = tmp_path_factory.mktemp("user")
    (root / "made_by_users.py").write_text(MODULE)
    sys.path.insert(0, str(root))
    yield
    sys.path.remove(str(root))
    sys.modules.pop("made_by_users", None)


@pytest.mark.parametrize(
    ("path", "settings", "values"),
    [
        ("get_cosine", {}, [1.0, -1.0]),
        ("get_cosine", {"low": -5.0}, [1.0, -5.0]),
        ("get_with_kwargs", {"value": 4.0}, [4.0, 4.0]),
        ("get_partial", {"scale": 0.5}, [1.0, 2.0]),
        ("get_instance", {}, [5.0, 7.0]),
        ("scaled", {"scale": 2.0}, [4.0, 8.0]),
        ("by_kwargs", {}, [1.0, 1.0]),
        ("Plain", {"offset": 1.0}, [3.0, 5.0]),
        ("Plain.of_class", {}, [5.0, 5.0]),
        ("made", {}, [9.0, 11.0]),
    ],
)
def test_a_path_leads_to_what_it_makes(path: str, settings: dict[str, Any], values: list[float]) -> None:
    reward = get_reward_function(f"made_by_users.{path}", **settings)
    assert reward(prompts=["p", "p"], completions=["ab", "abcd"]) == values
    assert (reward.name, reward.weight) == (path.rpartition(".")[2], 1.0)


def test_name_weight_and_calling_go_beside_the_settings_of_a_factory() -> None:
    settings = {"low": -2.0, "name": "mine", "weight": 0.5, "scope": "completion"}
    (reward,) = resolve_rewards([{"class_path": "made_by_users.get_cosine", "init_args": settings}])
    assert (reward.name, reward.weight, reward.scope) == ("mine", 0.5, "completion")
    own = get_reward_function("made_by_users.get_instance", name="Grace")
    assert own.name == "get_instance" and own(prompts=["p"], completions=[""]) == [5.0]


def test_a_factory_of_an_async_reward_gives_one() -> None:
    assert get_reward_function("made_by_users.get_async").is_async


def test_a_factory_that_makes_no_reward_and_a_class_without_call_are_refused() -> None:
    with pytest.raises(TypeError, match=r"get_nothing takes neither prompts nor completions.*returned a NoneType"):
        get_reward_function("made_by_users.get_nothing")
    with pytest.raises(TypeError, match=r"is the class Mute.*its instances cannot be called.*__call__"):
        get_reward_function("made_by_users.Mute")


def outer(**kwargs: Any) -> Any:
    def judged(text: str) -> float:
        return 1.0

    return [judged(text) for text in kwargs["completions"]]


def of_a_column(answer: Any) -> Any:
    return [1.0] * len(answer)


def over_args(*args: Any) -> Callable[..., Any]:
    return lambda completions, **kwargs: [0.0] * len(completions)


@pytest.mark.parametrize(
    ("function", "expected"), [(outer, False), (of_a_column, False), (over_args, True), (lambda: of_a_column, True)]
)
def test_only_what_takes_nothing_of_the_completions_is_a_factory(function: Any, expected: bool) -> None:
    assert is_factory(function, ()) is expected


class Holder:
    """Stands for the module: only the types of its arguments matter."""

    def __init__(self, rewards: RewardSpec = "accuracy") -> None:
        self.rewards = resolve_rewards(rewards)


def test_a_config_may_name_factories_and_plain_classes(tmp_path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Holder, "model")
    (tmp_path / "config.yaml").write_text(
        "model:\n  rewards:\n  - class_path: made_by_users.get_cosine\n    init_args: {low: -3.0, weight: 2}\n"
        "  - class_path: made_by_users.Plain\n    init_args: {offset: 2}\n  - made_by_users.get_cosine\n"
    )
    config = parser.parse_args([f"--config={tmp_path / 'config.yaml'}"])
    rewards = parser.instantiate(config).model.rewards
    assert [(reward.name, reward.weight) for reward in rewards] == [
        ("get_cosine", 2.0), ("Plain", 1.0), ("get_cosine_2", 1.0)
    ]  # fmt: skip
    assert [reward(prompts=["p"], completions=["long"]) for reward in rewards] == [[-3.0], [6], [-1.0]]
