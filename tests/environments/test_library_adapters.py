"""Environments of other libraries run for real: offline, or on loopback."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
import time
from pathlib import Path

import pytest

from grpo_lightning.environments import EnvironmentContractError, EnvironmentFault, open_episodes

ADAPTERS = "grpo_lightning.environments.adapters"


def opened(kind: str, **settings):
    return open_episodes(environment={"class_path": f"{ADAPTERS}.{kind}", "init_args": settings})


async def played(factory, row, turns):
    """First observation, answers, rewards and whether it is done."""
    episode = factory(row)
    first = await episode.reset(row)
    answers = [(await episode.respond(turn)) or [{"content": None}] for turn in turns]
    rewards, is_done = list(episode.rewards), episode.done
    await episode.close()
    return "".join(m["content"] for m in first), [answer[0]["content"] for answer in answers], rewards, is_done


def play(factory, *episodes):
    async def all_of_them():
        results = await asyncio.gather(*(played(factory, *episode) for episode in episodes), return_exceptions=True)
        await factory.close()
        return results

    return asyncio.run(all_of_them())


def test_gymnasium_takes_text_and_numbers_in_text():
    gymnasium = pytest.importorskip("gymnasium")

    class Spelling(gymnasium.Env):
        action_space = gymnasium.spaces.Text(10)
        observation_space = gymnasium.spaces.Text(100)

        def reset(self, seed=None, options=None):
            super().reset(seed=seed)
            return f"Spell {seed}.", {}

        def step(self, action):
            return action.upper(), 0.5, action == "end", False, {}

    gymnasium.register("Spelling-v0", Spelling, order_enforce=False, disable_env_checker=True)
    text = play(opened("gymnasium.GymnasiumText", id="Spelling-v0"), ({"seed": 4}, ["a", "end"]))[0]
    assert text == ("Spell 4.", ["A", "END"], [0.5, 0.5], True)

    lake = opened("gymnasium.GymnasiumText", id="FrozenLake-v1", settings={"is_slippery": False})
    path = ["I go down: 1", "1", "2", "1", "2", "2"]
    first, answers, rewards, is_done = play(lake, ({"seed": 0}, ["fly", *path]))[0]
    assert (first, answers) == ("0", ["Write a number from 0 to 3.", "4", "8", "9", "13", "14", "15"])
    assert rewards == [0.0] * 6 + [1.0] and is_done


def test_gymnasium_refuses_actions_that_text_cannot_name():
    gymnasium = pytest.importorskip("gymnasium")

    class Steered(gymnasium.Env):
        action_space = gymnasium.spaces.Box(-1, 1)
        observation_space = gymnasium.spaces.Text(10)

    gymnasium.register("Steered-v0", Steered, disable_env_checker=True)
    (error,) = play(opened("gymnasium.GymnasiumText", id="Steered-v0"), ({}, []))
    assert isinstance(error, EnvironmentContractError) and "Text and Discrete can be written" in str(error)


def test_skyrl_gym_gives_a_reward_per_turn():
    pytest.importorskip("skyrl_gym")
    row = {"prompt": [{"role": "user", "content": "1+1?"}], "reward_spec": {"ground_truth": "2"}, "max_turns": 5}
    factory = opened("skyrl_gym.SkyRLGym", id="gsm8k_multi_turn")
    first, answers, rewards, is_done = play(factory, (row, ["no idea", "#### 3", "#### 2"]))[0]
    assert first == "" and "#### ANSWER" in answers[0] and answers[2] is None
    assert rewards == pytest.approx([0.0, 0.04, 1.0]) and is_done


def test_textarena_plays_the_same_game_for_a_seed_and_leaves_the_global_generator_alone():
    pytest.importorskip("textarena")
    random.seed(3)
    row, turns = {"seed": 11}, ["[1]", "[20]"]
    factory = opened("textarena.TextArena", id="GuessTheNumber-v0")
    one, other = play(factory, (row, turns), (row, turns))
    drawn = random.random()
    random.seed(3)
    assert drawn == random.random()
    assert one == other and "Guess The Number" in one[0] and one[0].count("Guess The Number") == 1
    assert one[1] == ["The target number is higher.", "The target number is lower."]
    random.seed(11)
    secret = random.randint(1, 20)
    won = play(opened("textarena.TextArena", id="GuessTheNumber-v0"), (row, [f"[{secret}]"]))[0]
    assert won[2:] == ([1.0], True) and "Congratulations" in won[1][0]


@pytest.fixture(scope="module")
def openenv_url():
    pytest.importorskip("openenv")
    uvicorn = pytest.importorskip("uvicorn")
    pytest.importorskip("fastmcp")
    from echo_server import app

    config = uvicorn.Config(app(), host="127.0.0.1", port=0, log_level="error")
    listening = config.bind_socket()
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(60)


def test_openenv_has_a_session_for_each_rollout_and_a_crash_costs_its_own_alone(openenv_url):
    factory = opened("openenv.OpenEnv", base_url=openenv_url)
    results = play(factory, ({"seed": 1}, ["hello", "you"]), ({"seed": 2}, ["crash"]), ({"seed": 3}, ["x"]))
    assert results[0] == ("seed 1", ["1: hello", "2: you"], [5.0, 3.0], True)
    assert isinstance(results[1], EnvironmentFault) and "no power" in str(results[1])
    assert results[2] == ("seed 3", ["1: x"], [1.0], False)


def test_openenv_takes_the_name_of_one_column(openenv_url):
    """``columns: seed`` was the four columns s, e, e and d: no episode had its row's seed."""
    (result,) = play(opened("openenv.OpenEnv", base_url=openenv_url, columns="seed"), ({"seed": 7}, ["x"]))
    assert result[0] == "seed 7"


def test_openenv_says_which_fields_an_observation_has(openenv_url):
    (error,) = play(opened("openenv.OpenEnv", base_url=openenv_url, observation="board"), ({}, []))
    assert isinstance(error, EnvironmentFault) and "The observation has metadata, message" in str(error)


def mcp_tools(**settings):
    command = [sys.executable, str(Path(__file__).with_name("mcp_server.py"))]
    return {"class_path": f"{ADAPTERS}.mcp.MCPTools", "init_args": {"command": command, **settings}}


def test_an_mcp_server_gives_its_tools():
    pytest.importorskip("mcp")

    async def calls():
        factory = open_episodes(tools=[mcp_tools()])
        episode = factory({})
        arguments = [("add", {"a": n, "b": 1}) for n in range(3)]
        arguments += [("look_up", {"page": "x"}), ("add", {"a": 1}), ("sub", {})]
        results = await asyncio.gather(*(episode.call(*each) for each in arguments))
        await factory.close()
        return episode.tools, results

    tools, results = asyncio.run(calls())
    assert [tool["function"]["name"] for tool in tools] == ["add", "look_up"]
    assert tools[0]["function"]["description"] == "Adds two numbers."
    assert [result.content for result in results[:3]] == ["1", "2", "3"]
    assert [result.mistake for result in results] == [False] * 3 + [True] * 3
    assert "there is no page x" in results[3].content and "'b' is a required property" in results[4].content


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": ["sub"]}, "has no tool sub. It has add, look_up"),
        ({"command": [sys.executable, "-c", "raise SystemExit(1)"]}, "gave no tools"),
        ({"url": "http://127.0.0.1:1/mcp"}, "MCPTools takes command"),
    ],
)
def test_an_mcp_server_that_cannot_be_used_is_refused(settings, message):
    pytest.importorskip("mcp")
    with pytest.raises(EnvironmentContractError, match=message):
        open_episodes(tools=[mcp_tools(**settings)])


@pytest.mark.parametrize("mode", ["lists its tools", "says nothing"])
def test_an_mcp_server_that_does_not_end_by_itself_is_ended(mode, tmp_path, monkeypatch):
    """As one whose input is read by a child of its own, or one that hangs as it starts."""
    adapter = pytest.importorskip("grpo_lightning.environments.adapters.mcp")
    server = Path(__file__).with_name("mcp_server.py")
    script = tmp_path / "server.py"
    script.write_text(
        "import os, pathlib, subprocess, sys, time\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        f"{mode == 'lists its tools'} and subprocess.run([sys.executable, {str(server)!r}])\n"
        "time.sleep(600)\n"
    )
    settings = mcp_tools(command=[sys.executable, str(script)])
    if mode == "says nothing":
        monkeypatch.setattr(adapter, "START_LIMIT", 3.0)
        with pytest.raises(EnvironmentContractError, match="gave no tools: TimeoutError"):
            open_episodes(tools=[settings])
    else:
        asyncio.run(open_episodes(tools=[settings]).close())
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
