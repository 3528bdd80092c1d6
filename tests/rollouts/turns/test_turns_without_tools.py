"""An environment that only answers turns has nothing to call, so that how the model writes calls need not be known."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_lightning import GRPOModule
from grpo_lightning.environments.forms import open_episodes
from grpo_lightning.generation import TransformersGenerator

QUICKSTART = Path(__file__).resolve().parents[3] / "assets" / "quickstart" / "model"
"""Its chat template renders no calls."""


class Again:
    """Says one thing."""

    done = True

    def reset(self, **row) -> str:
        return "Again."

    def step(self, text: str):
        return "", 1.0, True


class WithTool(Again):
    """The same beside a tool."""

    def look(self) -> str:
        """Looks."""
        return "here"


def made(environment):
    return GRPOModule(
        model_name_or_path=str(QUICKSTART),
        rewards="environment",
        environment=environment,
        num_generations=2,
        max_completion_length=8,
        generator=TransformersGenerator(),
    )


def test_an_environment_without_tools_needs_no_form_of_calls_and_one_with_a_tool_does():
    assert not open_episodes(environment=Again).has_tools and open_episodes(environment=WithTool).has_tools
    assert not made(Again).source.has_tools
    with pytest.raises(ValueError, match=r"renders a tool call as .* Set model.turns.tool_call_format"):
        made(WithTool)
