"""What TRL's GRPOTrainer gets as arguments, carried over by import path."""

from __future__ import annotations

import pytest
from parsed_config import parse

from grpo_lightning.migration import migrate, read_source

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


def test_tools_are_named_and_exceptions_are_told_as_in_trl():
    result = migrate(read_source(None, ["--tools", "my.add,my.search", "--max_tool_calling_iterations", "3"]))
    config = result.config
    assert config["model.tools"] == ["my.add", "my.search"]
    assert (config["model.turns.max_turns"], config["model.turns.tool_exceptions"]) == (4, "tell")
    assert not result.lost()


def test_an_environment_brings_its_reward_where_there_is_no_other():
    alone = migrate(read_source(None, ["--environment_factory", "my.Env"]))
    assert alone.config["model.environment"] == "my.Env" and alone.config["model.rewards"] == ["environment"]
    assert alone.config["model.turns.max_turns"] == 999
    beside = migrate(read_source(None, ["--environment_factory", "{a: my.A, b: my.B}", "--reward_funcs", "my.reward"]))
    assert beside.config["model.environment"] == {"a": "my.A", "b": "my.B"}
    assert beside.config["model.rewards"] == ["my.reward"]
    assert any("add environment to model.rewards" in note for note in beside.notes)


def test_a_rollout_function_is_named_and_a_limit_without_tools_is_refused():
    result = migrate({"rollout_func": "my.rollout", "max_tool_calling_iterations": 3})
    assert result.config["model.rollout_func"] == "my.rollout"
    assert "no effect without tools" in result.lost()["max_tool_calling_iterations"]


def test_what_is_written_can_be_read(tmp_path):
    settings = {"model_name_or_path": "some/model", "environment_factory": "my.Env", "tools": "my.add"}
    path = tmp_path / "config.yaml"
    path.write_text(migrate(settings).to_yaml("a test"))
    parsed = parse(path)
    assert parsed.model.environment == "my.Env" and parsed.model.tools == ["my.add"]
    assert parsed.model.turns.max_turns == 999
