"""What a rollout of several turns talks to: one environment instance, whatever form its user wrote it in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from grpo_lightning.errors import ExplainedError
from grpo_lightning.messages import Message


@dataclass(frozen=True)
class ToolResult:
    """What one tool call gave, as the model will read it."""

    content: str
    """Already cut at the limit; a cut is said in the text."""
    mistake: bool = False
    """True where the model was wrong: no such tool, arguments that are no JSON object, or the wrong ones."""


class EnvironmentFault(Exception):
    """The environment's own fault: an exception, a time-out, a reset that failed. The rollout is dropped and counted."""


class RaisedFault(EnvironmentFault):
    """An exception of the environment's or a tool's.

    Args:
        message: Which call, with its traceback.
        said: The exception's own text.
    """

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said


class ToolMistake(Exception):
    """Raised by a tool to tell the model that it was wrong: its text is the tool's answer, and counts as a mistake."""


class EnvironmentContractError(ExplainedError, ValueError):
    """Tools, environments or rows that break the contract, such as a tool without types. Stops the run."""


class Episode(Protocol):
    """One environment for one rollout. Its calls come one after the other; different episodes run at the same time."""

    tools: list[dict[str, Any]]
    """JSON schemas for the chat template, as ``transformers.utils.get_json_schema`` makes them."""
    done: bool
    """True once the environment has said that there is nothing more to do."""
    rewards: list[float]
    """The environment's rewards, one per turn that gave one."""

    @property
    def environment(self) -> Any:
        """The user's object, which rewards may look at, also behind the end; None where there is none in this process."""
        ...

    async def reset(self, row: dict[str, Any]) -> list[Message]:
        """Starts over with the columns of ``row``.

        Returns:
            Messages that come behind the prompt (:func:`~grpo_lightning.messages.behind_prompt` puts them
            there); none where the environment has nothing to say.

        Raises:
            EnvironmentFault: If it cannot.
        """
        ...

    async def call(self, name: str, arguments: dict[str, Any] | str) -> ToolResult:
        """Calls a tool.

        Args:
            name: As the model wrote it.
            arguments: A mapping, or the JSON text of one, which the model may have got wrong.

        Raises:
            EnvironmentFault: If the tool raised, or took longer than the deadline.
        """
        ...

    async def respond(self, text: str) -> list[Message] | None:
        """The answer to a turn of text, by environments that have ``step``; None where this one has none.

        Raises:
            EnvironmentFault: As ``call``.
        """
        ...

    async def final_reward(self) -> float | None:
        """The reward of the whole episode, asked once at its end; None where the environment has none.

        A coroutine, since ``get_reward`` may be one, or take its time, and has the deadline of every other call.

        Raises:
            EnvironmentFault: If ``get_reward`` raised or gave no number.
        """
        ...

    async def close(self) -> None:
        """Lets go of the environment. Never raises, never waits for a call that hangs."""
        ...


class EpisodeFactory(Protocol):
    """Makes the episodes of a run."""

    rewarding: tuple[str, ...]
    """The classes whose environments have ``get_reward``."""
    has_tools: bool
    """Whether there is something to call, besides what ``step`` answers."""
    at_once: int | None
    """Episodes that there can be at the same time, further ones wait for their end; None for any number."""
    faults: dict[str, int]
    """Counts so far: ``time_outs`` of calls, ``abandoned`` threads that still run, ``exceptions``."""

    def __call__(self, row: dict[str, Any]) -> Episode:
        """A fresh episode for a rollout of ``row``.

        Nothing runs yet: the environment is made by ``reset``, under its deadline.

        Raises:
            EnvironmentContractError: If the row names an environment that does not exist. No retry mends that: it stops
                the run.
        """
        ...

    async def close(self) -> None:
        """Lets go of all environments, servers and processes."""
        ...
