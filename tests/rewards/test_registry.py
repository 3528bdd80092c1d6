"""Tests of finding rewards: by name, by import path, from a config, in a script."""

from __future__ import annotations

import functools
import gc
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from grpo_lightning.rewards import (
    REWARD_FUNCTIONS,
    AccuracyReward,
    BaseRewardFunction,
    FormatReward,
    FunctionReward,
    LengthReward,
    RewardContractError,
    RewardSpec,
    get_reward_function,
    get_reward_functions,
    list_reward_functions,
    register_reward,
    resolve_rewards,
)
from grpo_lightning.rewards.resolve import eval_rewards

pytestmark = pytest.mark.usefixtures("registry_as_it_was")


class Constant(BaseRewardFunction):
    """A class in the manner of BaseRewardFunction's predecessor: no dataclass decorator, settings in a plain ``__init__``."""

    def __init__(self, value: float = 0.5) -> None:
        self.value = value

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        return [self.value] * len(completions)


def long_enough(completions: list[str], minimum: int = 3) -> list[float]:
    return [float(len(text) >= minimum) for text in completions]


async def awaited(completions: list[str], **kwargs: Any) -> list[float]:
    return [1.0] * len(completions)


@pytest.fixture(scope="module")
def user_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("user")
    (root / "my_reward_pkg").mkdir()
    (root / "my_reward_pkg" / "__init__.py").touch()
    (root / "my_reward_pkg" / "broken.py").write_text("import a_module_that_is_not_installed\n")
    (root / "my_reward_pkg" / "rewards.py").write_text(
        "from grpo_lightning.rewards import BaseRewardFunction\n"
        "def ones(completions, **kwargs):\n    return [1.0] * len(completions)\n"
        "class Twos(BaseRewardFunction):\n"
        "    def __call__(self, prompts, completions, **columns):\n        return [2.0] * len(completions)\n"
        "NUMBER = 3\nclass Other: pass\n"
    )
    sys.path.insert(0, str(root))
    yield "my_reward_pkg.rewards"
    sys.path.remove(str(root))
    for name in [name for name in sys.modules if name.startswith("my_reward_pkg")]:
        del sys.modules[name]
    gc.collect()  # jsonargparse offers every subclass alive, and would fail to import these


def test_the_built_in_rewards_are_registered_and_work_without_settings() -> None:
    assert {"accuracy", "format", "length"} <= set(list_reward_functions())
    rewards = get_reward_functions("accuracy, format,length")
    assert [type(reward) for reward in rewards] == [AccuracyReward, FormatReward, LengthReward]
    assert [(reward.name, reward.weight) for reward in rewards] == [("accuracy", 1.0), ("format", 1.0), ("length", 1.0)]
    assert all(reward.processing_class is None for reward in rewards)


def test_registered_classes_and_functions_are_made_with_their_settings() -> None:
    assert register_reward("constant")(Constant) is Constant
    assert register_reward("long_enough")(long_enough) is long_enough
    constant = get_reward_function("constant", value=2.0)
    assert constant(prompts=["p"], completions=["c"]) == [2.0] and constant.name == "constant"
    function = get_reward_function("long_enough", minimum=5, weight=0.5)
    assert function(prompts=["p"] * 2, completions=["1234", "12345"]) == [0.0, 1.0]
    assert (function.name, function.weight) == ("long_enough", 0.5)
    assert [reward.weight for reward in get_reward_functions(["accuracy", "format"], weight=0.3)] == [0.3, 0.3]


def test_init_args_may_rename_a_reward_whatever_its_kind(user_module: str) -> None:
    paths = ["accuracy", "AccuracyReward", "grpo_lightning.rewards.AccuracyReward", f"{user_module}.ones"]
    for path in paths:
        (reward,) = resolve_rewards([{"class_path": path, "init_args": {"name": "near", "weight": 0.5}}])
        assert (reward.name, reward.weight) == ("near", 0.5), path


def test_a_function_may_have_arguments_of_the_names_that_the_registry_uses() -> None:
    def scaled(completions: list[str], reward: float = 1.0, fallback_name: str = "") -> list[float]:
        return [reward] * len(completions)

    register_reward("scaled")(scaled)
    reward = get_reward_function("scaled", reward=3.0, fallback_name="x")
    assert (reward.name, reward(prompts=["p"], completions=["c"])) == ("scaled", [3.0])


def test_registry_errors_have_the_seeds_texts() -> None:
    REWARD_FUNCTIONS.clear()
    with pytest.raises(ValueError, match=r"^Reward function 'x' not found. Available reward functions: none$"):
        get_reward_function("x")
    register_reward("a")(Constant)
    register_reward("b")(long_enough)
    with pytest.raises(ValueError, match=r"^Reward function 'x' not found. Available reward functions: a, b$"):
        get_reward_functions("a,x")
    with pytest.raises(ValueError, match=r"^Reward function 'a' is already registered.$"):
        register_reward("a")(Constant)


def test_only_rewards_and_functions_can_be_registered() -> None:
    with pytest.raises(TypeError, match="'d' is the class dict, which is not a BaseRewardFunction"):
        register_reward("d")(dict)
    with pytest.raises(TypeError, match="'n' is a int, neither a reward class nor a function"):
        register_reward("n")(3)  # type: ignore[arg-type]


def test_import_paths_find_functions_and_classes(user_module: str) -> None:
    ones, twos = get_reward_functions(f"{user_module}.ones,{user_module}.Twos")
    assert ones(prompts=["p"], completions=["c"]) == [1.0] and ones.name == "ones"
    assert twos(prompts=["p"], completions=["c"]) == [2.0] and twos.name == "Twos"


def test_a_wrong_import_path_says_whether_module_or_attribute_is_missing(user_module: str) -> None:
    with pytest.raises(ValueError, match=r"no module 'my_reward_pkg.reward'"):
        get_reward_function("my_reward_pkg.reward.ones")
    with pytest.raises(
        ValueError, match=r"'my_reward_pkg.rewards' has no attribute 'one'. Did you mean ones\? It has: .*ones, Twos"
    ):
        get_reward_function(f"{user_module}.one")
    with pytest.raises(TypeError, match="neither a reward class nor a function"):
        get_reward_function(f"{user_module}.NUMBER")
    with pytest.raises(TypeError, match="not a BaseRewardFunction"):
        get_reward_function(f"{user_module}.Other")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_installed"):  # the user's own import, unchanged
        get_reward_function("my_reward_pkg.broken.ones")


def test_a_mixed_list_resolves_in_order(user_module: str) -> None:
    rewards = resolve_rewards(
        [
            "format",
            long_enough,
            awaited,
            functools.partial(long_enough, minimum=9),
            Constant(0.25),
            {"class_path": "AccuracyReward", "init_args": {"mode": "exact"}},
            {"class_path": "accuracy", "init_args": {"mode": "numeric"}},
            {"class_path": f"{user_module}.ones"},
        ],
        "1,2,3,4,5,6,7,8",
    )
    names = ["format", "long_enough", "awaited", "long_enough_2", "Constant", "accuracy", "accuracy_2", "ones"]
    assert [reward.name for reward in rewards] == names
    assert [reward.weight for reward in rewards] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert [reward.is_async for reward in rewards] == [False, False, True] + [False] * 5
    assert isinstance(rewards[5], AccuracyReward) and rewards[5].mode == "exact"
    assert isinstance(rewards[6], AccuracyReward) and rewards[6].mode == "numeric"


def test_one_reward_needs_no_list() -> None:
    assert [reward.name for reward in resolve_rewards("accuracy,format")] == ["accuracy", "format"]
    assert resolve_rewards(long_enough)[0].name == "long_enough"
    assert resolve_rewards(FormatReward())[0].name == "format"
    assert resolve_rewards({"class_path": "format"})[0].name == "format"


def test_weights_leave_the_callers_objects_alone() -> None:
    mine = FormatReward()
    assert resolve_rewards([mine])[0] is mine
    assert resolve_rewards([mine], [2.0])[0].weight == 2.0
    assert [reward.name for reward in resolve_rewards([mine, mine])] == ["format", "format_2"]
    assert (mine.name, mine.weight) == ("format", 1.0)


class Faint(Constant):
    """Its own weight is small, which nobody who names it has chosen."""

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__()
        self.weight = weight


@pytest.mark.parametrize(
    "entry",
    [
        {"class_path": "format", "init_args": {"weight": 0.5}},
        {"class_path": f"{__name__}.long_enough", "init_args": {"weight": 0.5}},
        FormatReward(weight=0.5),  # what jsonargparse makes of the path of a class
    ],
)
def test_a_weight_that_an_entry_gives_is_not_replaced_by_another(entry: Any) -> None:
    told = r"model.rewards gives \w+ the weight 0.5, and model.reward_weights 2. Only one can count"
    with pytest.raises(ValueError, match=told):
        resolve_rewards(["accuracy", entry], [1.0, 2.0])
    assert resolve_rewards(["accuracy", entry], [1.0, 0.5])[1].weight == 0.5
    assert resolve_rewards(["accuracy", entry])[1].weight == 0.5
    with pytest.raises(ValueError, match=r"model.eval_rewards gives \w+ the weight 0.5, which has no effect"):
        eval_rewards([entry])


def weighed(completions: list[str], weight: float, **columns: Any) -> list[float]:
    """A reward with a ``weight`` of its own, which is no factor."""
    return [weight * len(completion) for completion in completions]


def test_an_argument_of_a_rewards_own_that_is_called_weight_is_no_factor() -> None:
    entry = {"class_path": f"{__name__}.weighed", "init_args": {"weight": 0.5}}
    assert resolve_rewards([entry, "format"], [1.0, 2.0])[0].weight == 1.0
    assert [reward.weight for reward in (*resolve_rewards([entry]), *eval_rewards([entry]))] == [1.0, 1.0]


def test_the_default_weight_of_a_class_is_nobodys_choice() -> None:
    assert [reward.weight for reward in resolve_rewards([Faint(), FormatReward()], "2,3")] == [2.0, 3.0]
    unused = {"class_path": "format", "init_args": {"weight": 0.0}}
    assert len(eval_rewards([Faint(), unused])) == 2 and eval_rewards(None) == eval_rewards("") == []


def test_weights_must_match_in_number() -> None:
    with pytest.raises(
        ValueError, match=r"Number of reward_weights \(3\) must match number of reward_funcs \(2\): accuracy, format"
    ):
        resolve_rewards("accuracy,format", "1.0,0.5,0.2")
    with pytest.raises(ValueError, match=r"model.reward_weights='1;2' is not a list of numbers"):
        resolve_rewards("accuracy,format", "1;2")


NEEDING = """
class Needs:
    def __init__(self, path):
        self.path = path

    def __call__(self, completions, **columns):
        return [1.0] * len(completions)
"""


@pytest.mark.parametrize("spec", ["faulty.reward", {"class_path": "faulty.reward"}])
def test_a_type_error_of_the_file_itself_is_none_of_its_settings(
    spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faulty.py").write_text("len(3)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TypeError, match="no len"):
        resolve_rewards(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "model.rewards is empty"),
        ([], "model.rewards is empty"),
        ([3], "holds 3, which is neither a name, a reward nor a function"),
        ([FormatReward], "Give an instance, not the class"),
        ([{"class_pth": "format"}], "a reward has the keys class_path and init_args"),
        ([{"class_path": "format", "init_args": {"patern": "x"}}], "format cannot be made with init_args=.*'patern'"),
        ([{"class_path": "accuracy", "init_args": {"mode": "x"}}], "mode='x' is unknown"),
        ("needing.Needs", r"needing.Needs cannot be made with init_args={}: .*missing 1 required .*'path'"),
        ("accuracy,needing.Needs", r"needing.Needs cannot be made with init_args={}"),
        ("acuracy", "'acuracy' not found. Did you mean accuracy\\? Available reward functions: accuracy"),
        ("Fromat", "'Fromat' not found. Did you mean format\\? Available"),
        ("zzz", "Reward function 'zzz' not found. Available reward functions: accuracy"),
        ("needing.Neds", "has no attribute 'Neds'. Did you mean Needs\\? It has: "),
    ],
)
def test_a_wrong_spec_is_refused_in_the_words_of_the_config(
    spec: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needing.py").write_text(NEEDING)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=message):
        resolve_rewards(spec)


def test_a_function_gets_the_arguments_that_it_names() -> None:
    seen: dict[str, Any] = {}

    def named(completion_ids: Any, answer: Any, missing: Any = "default") -> list[float]:
        seen.update(completion_ids=completion_ids, answer=answer, missing=missing)
        return [0.0]

    def everything(**kwargs: Any) -> list[float]:
        seen.update(kwargs)
        return [0.0]

    call: dict[str, Any] = {"prompts": ["p"], "completions": ["c"], "completions_ids": [[5]], "answer": ["a"]}
    FunctionReward(function=named)(**call)
    assert seen == {"completion_ids": [[5]], "answer": ["a"], "missing": "default"}
    seen.clear()
    FunctionReward(function=everything)(**call)
    ids = call.pop("completions_ids")  # TRL's spelling alone, but for those that name the other one
    assert seen == {**call, "completion_ids": ids, "trainer_state": None}


def test_a_function_that_needs_a_column_says_which_the_data_has() -> None:
    def needs(completions: Any, answr: Any) -> list[float]:
        return [0.0]

    with pytest.raises(RewardContractError, match="'needs' needs the column answr, but the data has answer, uid"):
        FunctionReward(function=needs)(prompts=["p"], completions=["c"], answer=["a"], uid=[1])
    with pytest.raises(ValueError, match="'needs' has no argument limit"):
        FunctionReward(function=needs, settings={"limit": 3})


class Holder:
    """Stands for the module: only the types of its arguments matter."""

    def __init__(self, rewards: RewardSpec = "accuracy", reward_weights: str | list[float] | None = None) -> None:
        self.rewards = resolve_rewards(rewards, reward_weights)


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("rewards: accuracy,format", [("accuracy", 1.0), ("format", 1.0)]),
        ("rewards: [accuracy, format]\n  reward_weights: 1.0,0.5", [("accuracy", 1.0), ("format", 0.5)]),
        ("rewards: [accuracy, format]\n  reward_weights: [2, 0.5]", [("accuracy", 2.0), ("format", 0.5)]),
        (
            "rewards:\n  - format\n  - class_path: AccuracyReward\n    init_args: {mode: exact, weight: 2}\n"
            "  - class_path: LengthReward\n    init_args: {shape: cosine, correct: [1, 0.5],"
            " accuracy: {class_path: AccuracyReward, init_args: {mode: numeric}}}\n"
            "  - class_path: accuracy\n    init_args: {mode: exact}",
            [("format", 1.0), ("accuracy", 2.0), ("length", 1.0), ("accuracy_2", 1.0)],
        ),
        (
            "rewards:\n  - class_path: my_reward_pkg.rewards.ones\n  - my_reward_pkg.rewards.Twos",
            [("ones", 1.0), ("Twos", 1.0)],
        ),
    ],
)
def test_a_config_may_name_rewards_in_every_way(
    yaml: str, expected: list[tuple[str, float]], user_module: str, tmp_path: Path
) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Holder, "model")
    (tmp_path / "config.yaml").write_text(f"model:\n  {yaml}\n")
    config = parser.parse_args([f"--config={tmp_path / 'config.yaml'}"])
    rewards = parser.instantiate(config).model.rewards
    assert [(reward.name, reward.weight) for reward in rewards] == expected


@pytest.mark.parametrize(
    "argument", ["--model.rewards=format,length", "--model.rewards=[format,length]", "--model.rewards=[format, length]"]
)
def test_the_command_line_takes_names_with_and_without_brackets(argument: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Holder, "model")
    rewards = parser.instantiate(parser.parse_args([argument, "--model.reward_weights=1,0.5"])).model.rewards
    assert [(reward.name, reward.weight) for reward in rewards] == [("format", 1.0), ("length", 0.5)]


def open_ended(completions: list[str], within: float = 0.5, **columns: Any) -> list[float]:
    return [within for _ in completions]


def test_a_setting_of_every_reward_that_is_misspelt_for_a_function_is_warned_of() -> None:
    entry = {"class_path": f"{__name__}.open_ended", "init_args": {"within": 0.25, "time_limit": 5, "tone": "dry"}}
    with pytest.warns(UserWarning, match=r"time_limit .* is no parameter .* Did you mean call_time_limit\?") as said:
        resolve_rewards([entry])
    assert len(said) == 1
    plain = {"class_path": f"{__name__}.open_ended", "init_args": {"within": 0.25, "call_time_limit": 5}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (reward,) = resolve_rewards([plain])
    assert reward.call_time_limit == 5
