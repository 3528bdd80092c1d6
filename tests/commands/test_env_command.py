"""Tests of ``python -m grpo_lightning env``."""

from __future__ import annotations

import pytest
from rollouts.turns.tool_models import tool_tokenizer
from toy_models import save_toy_model

from grpo_lightning.commands.env import main


def test_an_episode_is_played_by_hand_with_tools(typed, capsys):
    typed('/increase {"by": 4}', "/increase", "/decrease {}", "hello")
    assert main(["play", "worlds.Counter", "--prompt", "Count. ", "--start", "3"]) == 0
    shown = capsys.readouterr().out
    assert "user: Count. The count is 3." in shown and "/increase by: Adds to the count." in shown
    assert "tool increase: The count is 7." in shown
    assert "'by' is a required property" in shown and "There is no tool 'decrease'" in shown
    assert "end: eos" in shown and "rewards of turns: [], of the episode: 7.0" in shown


def test_an_episode_of_text_ends_when_the_environment_is_done(typed, capsys):
    typed("5", "7", "never read")
    assert main(["play", "worlds.Guess", "--secret", "7"]) == 0
    shown = capsys.readouterr().out
    assert "user: wrong" in shown and "user: right" in shown
    assert "end: done" in shown and "rewards of turns: [0.0, 1.0]" in shown and "never read" not in shown


def test_tools_alone_are_played_and_quit_ends(typed, capsys):
    typed('/add {"a": 1, "b": 2}', "/quit", "/add {}")
    assert main(["play", "--tools", "worlds.add,worlds.chatter"]) == 0
    shown = capsys.readouterr().out
    assert "tool add: 3" in shown and "end: quit" in shown and "required" not in shown


def test_a_fault_is_shown_and_is_the_status(typed, capsys):
    typed("/fail")
    assert main(["play", "--tools", "worlds.fail"]) == 1
    assert "fault: fail raised:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["play", "worlds.Nobody"], "model.environment=worlds.Nobody names nothing"),
        (["play"], "there is nothing to play"),
        (["play", "worlds.Guess"], "reset needs secret"),
        (["check", "worlds.Guess", "3"], "is not made of columns"),
        (["watch"], "usage: grpo_lightning env play"),
    ],
)
def test_a_mistake_in_the_options_is_explained(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_model_plays_on_the_chat_template_of_rollouts(tmp_path, capsys):
    directory = save_toy_model(tmp_path / "model")
    tool_tokenizer().save_pretrained(directory)
    options = ["--max_tokens", "4", "--max_turns", "3", "--model", str(directory)]
    assert main(["play", "worlds.Guess", "--secret", "7", *options]) == 2
    assert "there is no --prompt" in capsys.readouterr().err
    for _ in range(2):
        assert main(["play", "worlds.Guess", "--secret", "7", "--prompt", "Guess", *options]) == 0
    first, second = capsys.readouterr().out.split("rewards of turns: ")[:2]
    assert first.count("assistant: ") == 3 and first.count("user: wrong") == 3 and "end: max_turns" in first
    assert first.split("assistant: ")[1:] == second.split("assistant: ")[1:]


def test_what_is_wrong_with_a_model_is_said_of_its_option(tmp_path, capsys):
    directory = save_toy_model(tmp_path / "model")
    (directory / "model.safetensors").write_bytes(b"cut")
    assert main(["play", "worlds.Guess", "--secret", "7", "--prompt", "Guess", "--model", str(directory)]) == 2
    assert f"--model={str(directory)!r}: the weights cannot be read." in capsys.readouterr().err


@pytest.mark.parametrize("name", ["worlds.Counter", "worlds.OneAtATime", "worlds.Apart"])
def test_check_finds_nothing_in_sound_classes(name, capsys):
    assert main(["check", name, "--seed", "1"]) == (0 if name != "worlds.Apart" else 1)
    shown = capsys.readouterr().out
    if name == "worlds.Apart":  # its observation names its process
        assert "instances reset at once do not all say" in shown
    else:
        assert f"{name}: 0 errors, 0 warnings" in shown and "tools: " in shown


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Untyped", "Untyped.move cannot be a tool: Argument where is missing a type hint"),
        ("Idle", "it has neither tools nor step(text)"),
        ("Seeding", "reset seeds or draws from the global generator of random"),
        ("Different", "a second reset of the same instance with the same row gives another observation"),
        ("Different", "mutable attributes that all instances share: board"),
        ("Shared", "8 instances reset at once do not all say what one alone says"),
        ("Finished", "done is True right after reset"),
        ("Finished", "Finished.get_reward gave the reward 'much'"),
        ("Unknown", "Unknown.move cannot be a tool: NameError: name 'Place' is not defined"),
        ("Settings", "Settings(size) is called with nothing: missing a required argument: 'size'"),
        ("Column", "Column.reset needs size, but the row has no columns"),
        ("Wordy", "a turn without words, which a policy may sample, is a fault: Wordy.step raised:"),
        ("broken", "faulty_worlds.broken cannot be read:"),
    ],
)
def test_check_finds_the_fault_of_a_class(name, told, capsys):
    assert main(["check", f"faulty_worlds.{name}"]) == 1
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["./worlds.py"], "model.environment=./worlds.py is no import path: write package.module.name"),
        (["worlds.Counter", "--init_args", "3"], "model.environment has init_args=3, which are no mapping"),
        (
            ["worlds.Counter", "--init_args", '{"size": 3}'],
            "is called with size: got an unexpected keyword argument 'size'",
        ),
    ],
)
def test_check_answers_what_it_cannot_call_in_a_line(arguments, told, capsys):
    assert main(["check", *arguments]) == 1
    shown = capsys.readouterr().out
    assert told in shown and "Traceback" not in shown
