"""``chat --tools``: calls and results on the screen, faults that end an episode and not the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import worlds
from rollouts.turns.tool_models import tool_tokenizer
from toy_models import save_toy_model

from grpo_lightning.commands import chat
from grpo_lightning.commands.chat_tools import ToolChat
from grpo_lightning.commands.env_model import ModelPlayer
from grpo_lightning.environments import open_episodes
from grpo_lightning.rollouts.turns.settings import Turns
from grpo_lightning.rollouts.turns.tool_call_formats import ReadTurn, ToolCall

ROOT = Path(__file__).parents[2]
CALCULATOR = [
    str(ROOT / "assets" / "quickstart_tools" / "model"),
    "--config",
    str(ROOT / "configs" / "quickstart_tools.yaml"),
]


class Script(ModelPlayer):
    """Says what it was told to, in place of a model; notes what it is shown."""

    def __init__(self, *turns: ReadTurn) -> None:
        self.turns, self.ids, self.news = iter(turns), [], []

    def __call__(self, conversation, news, tools):
        self.news.append([message["content"] for message in news])
        return next(self.turns)


def talk(player, turns=None, row=None, **settings):
    return ToolChat(player, open_episodes(**settings), turns or Turns(), row or {}, "Be brief.")


def test_a_trained_model_calls_the_tools_of_its_config(typed, capsys):
    typed("8+14=", "30+5=")
    assert chat.main([*CALCULATOR, "--tools", "--max_completion_length", "96"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert 'assistant calls add {"a": 8, "b": 14}' in shown and "tool add: 22" in shown
    assert 'assistant calls add {"a": 30, "b": 5}' in shown and "tool add: 35" in shown


def test_tools_are_imported_only_where_it_is_asked_for(typed, capsys, tmp_path, monkeypatch):
    (tmp_path / "noted_tools.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "config.yaml").write_text("model: {tools: [noted_tools.add]}\n")
    monkeypatch.chdir(tmp_path)
    directory = str(save_toy_model(tmp_path / "model"))
    typed("1+2=")
    assert chat.main([directory, "--config", "config.yaml", "--max_completion_length", "2"]) == 0
    assert "--tools imports their code and runs them" in capsys.readouterr().err


def test_the_answer_comes_behind_calls_and_results_and_the_conversation_goes_on(capsys):
    add = ReadTurn("Let me see.", [ToolCall("add", {"a": 2, "b": 40}), ToolCall("sub", {})])
    player = Script(add, ReadTurn("It is 42."), ReadTurn("Gladly."))
    chatting = talk(player, tools=[worlds.add])
    assert chatting.answer("2+40?") == "It is 42."
    assert capsys.readouterr().out.splitlines() == [
        "assistant: Let me see.",
        'assistant calls add {"a": 2, "b": 40}',
        "assistant calls sub {}",
        "tool add: 42",
        "tool sub: There is no tool 'sub'. The tools are: add.",
    ]
    assert chatting.answer("Thanks") == "Gladly."
    assert player.news[0] == ["Be brief.", "2+40?"] and player.news[2] == ["Thanks"]
    chatting.close()


def test_an_environment_answers_until_it_is_done_and_the_next_prompt_starts_another(capsys):
    player = Script(ReadTurn("5"), ReadTurn("7"), ReadTurn("7"))
    chatting = talk(player, row={"secret": 7}, environment=worlds.Guess)
    assert chatting.answer("Guess") == "[the environment ended the episode]"
    assert capsys.readouterr().out.splitlines() == ["assistant: 5", "user: wrong", "assistant: 7", "user: right"]
    assert chatting.answer("Again") == "[the environment ended the episode]"
    assert player.news[2] == ["Be brief.", "Again"]
    chatting.close()


def test_a_fault_or_too_many_turns_end_an_episode_and_not_the_chat():
    fail, add = ReadTurn("", [ToolCall("fail", {})]), ReadTurn("", [ToolCall("add", {"a": 1, "b": 1})])
    chatting = talk(Script(fail, add, add, ReadTurn("So.")), Turns(max_turns=2), tools=[worlds.fail, worlds.add])
    assert chatting.answer("x").startswith("[fault: fail raised:")
    assert "max_turns=2" in chatting.answer("y")
    assert chatting.answer("z") == "So."
    chatting.close()


@pytest.mark.parametrize(
    ("flags", "config", "told"),
    [
        (["--tools"], {}, "neither model.tools nor model.environment"),
        (["--tools", "--plain"], {"tools": ["worlds.add"]}, "exclude each other"),
        (["--row", '{"secret": 7}'], {}, "--row has no effect without --tools"),
        (["--tools"], {"tools": ["worlds.sub"]}, "worlds.sub names nothing"),
        (["--tools"], {"environment": "worlds.Guess"}, "reset needs secret"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(flags, config, told, typed, capsys, tmp_path):
    directory = save_toy_model(tmp_path / "model")
    tool_tokenizer().save_pretrained(directory)
    (tmp_path / "config.yaml").write_text(json.dumps({"model": config}))
    typed("hello")
    assert chat.main([str(directory), "--config", str(tmp_path / "config.yaml"), *flags]) == 1
    assert told in capsys.readouterr().err
