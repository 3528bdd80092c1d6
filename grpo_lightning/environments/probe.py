"""What is likely to go wrong with an environment class in a run: found by trying, without a model."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from grpo_lightning.concurrency.tracebacks import traceback_of
from grpo_lightning.environments.environment_class import EnvironmentClass
from grpo_lightning.environments.episode import (
    EnvironmentContractError,
    EnvironmentFault,
    Episode,
    EpisodeFactory,
    ToolMistake,
)
from grpo_lightning.environments.forms import EnvironmentSpec, open_episodes
from grpo_lightning.messages import Message

AT_ONCE = 8
"""Instances that are reset at the same time."""
SLOW = 1.0
"""Seconds that a reset may take before it is mentioned: a step has hundreds of them."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Literal["ok", "warning", "error"]
    text: str


async def probe(environment: EnvironmentSpec, row: dict[str, Any], deadline: float) -> list[Finding]:
    """What was found, in the order in which it was tried; what comes behind a reset that fails is not tried.

    Args:
        environment: As ``open_episodes`` takes it.
        row: Columns of one row of the data.
        deadline: Seconds for each call.
    """
    try:
        factory = open_episodes(environment=environment, deadline=deadline)
        assert factory is not None
    except EnvironmentContractError as error:
        return [Finding("error", str(error))]
    except Exception as error:  # of the user's code: its module, or a function that makes environments
        return [Finding("error", f"{environment} cannot be read:\n{traceback_of(error)}")]
    found: list[Finding] = []
    try:
        async for finding in _findings(factory, row):
            found.append(finding)
    except (EnvironmentContractError, EnvironmentFault, ToolMistake) as error:
        found.append(Finding("error", str(error)))
    await factory.close()
    return found


async def _findings(factory: EpisodeFactory, row: dict[str, Any]) -> AsyncIterator[Finding]:
    described = _described(factory, row)
    named = ", ".join(described.tools) or "none"
    answers = "step answers turns of text" if described.has_step else "turns of text end the episode"
    yield Finding(
        "ok", f"tools: {named}; {answers}; isolation {described.isolation}, concurrency {described.concurrency}"
    )
    if not described.tools and not described.has_step:
        yield Finding("error", "it has neither tools nor step(text): the policy can do nothing in it.")
    yield _shared_state(described)
    states = _global_state()
    started = time.perf_counter()
    episode = factory(row)
    first = await episode.reset(row)
    yield _speed(time.perf_counter() - started)
    yield (
        Finding("error", "done is True right after reset.")
        if episode.done
        else Finding("ok", "reset starts an episode")
    )
    yield _global_random(states, described)
    yield _same(first, await episode.reset(row))
    yield await _reward(episode)
    if described.has_step:
        yield await _empty_turn(episode)
    yield await _at_once(factory, row, first, described)
    await episode.close()


def _described(factory: Any, row: dict[str, Any]) -> EnvironmentClass:
    described: EnvironmentClass = factory.class_of(row)
    return described


def _shared_state(described: EnvironmentClass) -> Finding:
    mutable = [
        name
        for kind in described.kind.__mro__
        for name, value in vars(kind).items()
        if isinstance(value, list | dict | set | bytearray) and not name.startswith("__")
    ]
    if not mutable:
        return Finding("ok", "no mutable attributes of the class")
    return Finding(
        "warning",
        f"the class has mutable attributes that all instances share: {', '.join(mutable)}. Make them in __init__ or reset, "
        "or tuples where nothing changes them.",
    )


def _global_state() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]


def _global_random(before: tuple[Any, Any], described: EnvironmentClass) -> Finding:
    if described.isolation == "process":
        return Finding("ok", "global generators are those of its own process")
    after = _global_state()
    touched = [name for name, b, a in zip(("random", "numpy.random"), before, after, strict=True) if b != a]
    if not touched:
        return Finding("ok", "global generators are left alone")
    return Finding(
        "error",
        f"reset seeds or draws from the global generator of {', '.join(touched)}: rollouts disturb each other and the run, "
        "and none repeats. Use a random.Random of its own, or set isolation = 'process'.",
    )


def _speed(seconds: float) -> Finding:
    level: Literal["ok", "warning"] = "warning" if seconds > SLOW else "ok"
    return Finding(level, f"the first reset took {seconds:.2f} s, with the constructor")


def _same(first: list[Message], again: list[Message]) -> Finding:
    what = "a second reset of the same instance with the same row"
    if first == again:
        return Finding("ok", f"{what} gives the same observation")
    return Finding(
        "error",
        f"{what} gives another observation, so that a run does not repeat: {_text(first)!r:.100} and then "
        f"{_text(again)!r:.100}. Take randomness from a column of the row, such as seed.",
    )


async def _reward(episode: Episode) -> Finding:
    reward = await episode.final_reward()
    return Finding(
        "ok", "no get_reward, or it gives None" if reward is None else f"get_reward gives {reward:g} at the start"
    )


async def _empty_turn(episode: Episode) -> Finding:
    try:
        await episode.respond("")
    except EnvironmentFault as fault:
        return Finding("error", f"a turn without words, which a policy may sample, is a fault: {fault}")
    return Finding("ok", "step answers a turn without words")


async def _at_once(
    factory: EpisodeFactory, row: dict[str, Any], first: list[Message], described: EnvironmentClass
) -> Finding:
    episodes = [factory(row) for _ in range(AT_ONCE)]
    results = await asyncio.gather(*(_reset_and_close(episode, row) for episode in episodes), return_exceptions=True)
    hint = "Set concurrency = 1 on the class, or isolation = 'process'." if described.isolation == "thread" else ""
    for result in results:
        if isinstance(result, BaseException):
            return Finding("error", f"{AT_ONCE} instances reset at once, and one failed. {hint}\n{result}")
        if result != first:
            return Finding(
                "error",
                f"{AT_ONCE} instances reset at once do not all say what one alone says: {_text(result)!r:.100}. {hint}",
            )
    return Finding("ok", f"{AT_ONCE} instances reset at once say what one alone says")


async def _reset_and_close(episode: Episode, row: dict[str, Any]) -> list[Message]:
    try:
        return await episode.reset(row)
    finally:
        await episode.close()


def _text(messages: list[Message]) -> str:
    return "\n".join(str(message["content"]) for message in messages)
