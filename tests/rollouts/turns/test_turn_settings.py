"""What a config says about tools and environments arrives as it is written, and stands so in the run's config.yaml."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from grpo_lightning.environments import open_episodes
from grpo_lightning.rollouts.turns.settings import ToolSettings

HERE = __name__


class Guess:
    """A game with a setting.

    Args:
        limit: The largest number.
    """

    def __init__(self, limit: int = 9) -> None:
        self.limit = limit

    def reset(self, **row: Any) -> str:
        return f"Guess a number up to {self.limit}."

    def step(self, text: str) -> tuple[str, float, bool]:
        return "Right.", 1.0, True


def add(a: int, b: int) -> int:
    """Adds.

    Args:
        a: One number.
        b: Another.
    """
    return a + b


WITH_SETTINGS = {"class_path": f"{HERE}.Guess", "init_args": {"limit": 7}}
BY_NAME = {"easy": f"{HERE}.Guess", "hard": WITH_SETTINGS}


def read_and_made(given: dict[str, Any]) -> tuple[dict[str, Any], ToolSettings]:
    """As ``config.yaml`` has it, and the settings."""
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ToolSettings, "model")
    read = parser.parse_object({"model": given})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = yaml.safe_load(parser.dump(read))["model"]
    return written, parser.instantiate_classes(read).model


@pytest.mark.parametrize(
    "given",
    [
        {"environment": f"{HERE}.Guess"},
        {"environment": WITH_SETTINGS},
        {"environment": BY_NAME},
        {"tools": [f"{HERE}.add"]},
    ],
    ids=["a path", "with settings", "by name", "a tool"],
)
def test_a_config_is_written_as_it_was_read(given):
    written, settings = read_and_made(given)
    assert {name: written[name] for name in given} == given
    assert {name: getattr(settings, name) for name in given} == given


def test_each_of_several_environments_has_its_own_settings():
    _, settings = read_and_made({"environment": BY_NAME})

    async def begin(name: str) -> str:
        row = {"environment": name}
        return str(await episodes(row).reset(row))

    async def begin_each() -> list[str]:
        said = [await begin(name) for name in BY_NAME]
        await episodes.close()
        return said

    episodes = open_episodes(environment=settings.environment)
    easy, hard = asyncio.run(begin_each())
    assert "up to 9" in easy and "up to 7" in hard
