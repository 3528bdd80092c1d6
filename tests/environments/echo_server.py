"""An OpenEnv server: an environment that counts the letters of what it is told."""

from __future__ import annotations

import pytest

pytest.importorskip("openenv")
from openenv.core.env_server import Action, Environment, Observation, State
from openenv.core.env_server.http_server import create_fastapi_app


class Say(Action):
    message: str


class Heard(Observation):
    message: str


class Echo(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._state = State(step_count=0)

    def reset(self, seed=None, episode_id=None, **columns) -> Heard:
        self._state = State(step_count=0)
        return Heard(message=f"seed {seed}")

    def step(self, action: Say, **settings) -> Heard:
        self._state.step_count += 1
        if action.message == "crash":
            raise ConnectionError("no power")
        turn = self._state.step_count
        return Heard(message=f"{turn}: {action.message}", reward=len(action.message), done=turn == 2)

    @property
    def state(self) -> State:
        return self._state


def app():
    return create_fastapi_app(Echo, Say, Heard, max_concurrent_envs=8)
