"""Options of the command line below a setting that names a thing by its path: the name stays, and has the settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from parsed_config import Parsed

from grpo_lightning.datamodules.converters.registry import get_dataset_converter, with_arguments
from grpo_lightning.environments.forms import _classes
from grpo_lightning.rewards import resolve_rewards

HERE = __name__


class Game:
    """An environment with settings."""

    def __init__(self, limit: int = 1, **further: Any) -> None:
        self.limit, self.further = limit, further

    def reset(self, **row: Any) -> None:
        """Starts."""

    def guess(self, number: int) -> str:
        """Takes a guess.

        Args:
            number: The guess.
        """
        return "Right." if number == self.limit else "No."


def short(completions: list[str], limit: int, **columns: Any) -> list[float]:
    """A reward that is a function with a setting."""
    return [float(len(text) <= limit) for text in completions]


def asked(row: dict[str, Any], words: str = "") -> dict[str, Any]:
    """A converter that is a function with a setting."""
    return {"prompt": words + row["prompt"]}


@pytest.fixture
def parse(tmp_path):
    def parsed(*options: str, config: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
        base = {"model": {"model_name_or_path": "none", "rewards": "accuracy"}, "data": {"dataset": "rows.jsonl"}}
        for section, settings in (config or {}).items():
            base[section] |= settings
        path = Path(tmp_path, "run.yaml")
        path.write_text(yaml.safe_dump(base))
        found: dict[str, Any] = Parsed(args=["--config", str(path), *options], run=False).config.as_dict()
        return found

    return parsed


@pytest.mark.parametrize("below", ["model.environment.limit", "model.environment.init_args.limit"])
@pytest.mark.parametrize("where", ["path", "class_path", "file"])
def test_an_environment_of_the_users_own_keeps_its_path_and_gets_its_setting(parse, below, where):
    path = f"{HERE}.Game"
    config = {"model": {"environment": path}} if where == "file" else None
    first = {"path": ["--model.environment", path], "class_path": ["--model.environment.class_path", path], "file": []}
    given = parse(*first[where], f"--{below}", "9", config=config)["model"]["environment"]
    (described,) = _classes(given).values()
    assert (described.make().limit, described.make().further) == (9, {})


def test_settings_join_those_that_a_file_gives(parse):
    config = {"model": {"environment": {"class_path": f"{HERE}.Game", "init_args": {"limit": 3, "board": {"rows": 2}}}}}
    options = ["--model.environment.init_args.board.columns=4", "--model.environment.init_args.rate=1e-4"]
    given = parse(*options, config=config)["model"]["environment"]
    made = next(iter(_classes(given).values())).make()
    assert (made.limit, made.further) == (3, {"board": {"rows": 2, "columns": 4}, "rate": 0.0001})


def test_environments_by_name_stay_several(parse):
    path = f"{HERE}.Game"
    options = [f"--model.environment.easy={path}", f"--model.environment.hard.class_path={path}"]
    given = parse(*options, "--model.environment.hard.init_args.limit=9")["model"]["environment"]
    assert {name: each.make().limit for name, each in _classes(given).items()} == {"easy": 1, "hard": 9}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model.rewards", "accuracy", "--model.rewards.mode", "exact"], ("accuracy", "mode", "exact")),
        (["--model.rewards.mode", "exact"], ("accuracy", "mode", "exact")),
        (["--model.rewards", f"{HERE}.short", "--model.rewards.init_args.limit=3"], ("short", "limit", 3)),
        (["--model.rewards", f"[format,{HERE}.short]", "--model.rewards.limit=3"], ("short", "limit", 3)),
    ],
)
def test_a_reward_by_its_name_keeps_it_and_gets_its_setting(parse, options, expected):
    reward = resolve_rewards(parse(*options)["model"]["rewards"])[-1]
    name, setting, value = expected
    settings = getattr(reward, "settings", {})
    assert (reward.name, settings[setting] if setting in settings else getattr(reward, setting)) == (name, value)


def test_a_setting_below_several_rewards_in_one_text_is_refused(parse, capsys):
    with pytest.raises(SystemExit):
        parse("--model.rewards", "accuracy,format", "--model.rewards.mode", "exact")
    printed = capsys.readouterr().err
    assert "--model.rewards.mode is a setting of one thing, and model.rewards=accuracy,format names several" in printed


def as_json(path: str, **settings: Any) -> list[str]:
    return [f"--data.converter={json.dumps({'class_path': path, 'init_args': settings})}"]


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        (["--data.converter", f"{HERE}.asked", "--data.converter.words", "Say "], "Say a"),
        (["--data.converter.class_path", f"{HERE}.asked", "--data.converter.init_args.words", "Say "], "Say a"),
        (as_json(f"{HERE}.asked", words="Say "), "Say a"),
        (as_json("GRPODatasetConverter", conversational=True), [{"role": "user", "content": "a"}]),
        (as_json("grpo", conversational=True), [{"role": "user", "content": "a"}]),
        (["--data.converter=grpo", "--data.converter.conversational=true"], [{"role": "user", "content": "a"}]),
    ],
)
def test_a_converter_by_its_name_has_the_settings_that_options_give(parse, options, prompt):
    name, settings = with_arguments(parse(*options)["data"]["converter"], {})
    converter = get_dataset_converter(name, **settings)
    assert converter({"prompt": "a"})["prompt"] == prompt


@pytest.mark.parametrize(("name", "settings"), [("dppo", {"epsilon": 0.3}), (None, {"delta": 4.0})])
def test_a_loss_keeps_its_name(parse, name, settings):
    options = [f"--model.loss_type.{key}={value}" for key, value in settings.items()]
    found = parse(*([f"--model.loss_type={name}"] if name else []), *options)["model"]["loss_type"]
    assert found == {"class_path": name or "dapo", "init_args": settings}
