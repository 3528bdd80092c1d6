"""The settings of rollouts of several turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Turns:
    """Budgets of a rollout of several turns, and how its tools are called.

    Args:
        max_turns: Turns of the policy; what it asks for in the last one is still done.
        max_turn_length: Tokens of a turn; null for what is left of max_completion_length, which is the limit of all turns
            together with what tools and environment say.
        max_tool_response_length: Characters of what a tool says; the rest is cut, which the model is told.
        call_time_limit: Seconds that a call of a tool or environment may take; beyond, it is a fault.
        tool_exceptions: fault drops the rollout of a tool that raises; tell tells the model and goes on, as TRL does.
        time_limit: Seconds of a rollout, after which it asks for nothing more; null for any. Where it is used, a run does not
            repeat exactly.
        max_fault_share: The run stops where environments fail in more than this share of the latest rollouts (at least 64).
        history: What the policy reads of earlier turns. append keeps them as they were sampled, for ever. as_template has the
            chat template write them anew wherever it would write them otherwise (without their reasoning, for one), as the
            policy is used later: the rollout then has several histories, scored one by one, and counts as one completion.
        tool_call_format: How the model writes calls: hermes, llama3_json, mistral, ...; null for what its tokenizer or
            its chat template says.
    """

    max_turns: int = 8
    max_turn_length: int | None = None
    max_tool_response_length: int = 8192
    call_time_limit: float = 60.0
    tool_exceptions: Literal["fault", "tell"] = "fault"
    time_limit: float | None = None
    max_fault_share: float = 0.25
    history: Literal["append", "as_template"] = "append"
    tool_call_format: str | None = None

    def __post_init__(self) -> None:
        rules = {
            "max_turns": (self.max_turns >= 1, "1 or more"),
            "max_turn_length": (self.max_turn_length is None or self.max_turn_length >= 1, "1 token or more, or null"),
            "max_tool_response_length": (self.max_tool_response_length >= 64, "64 characters or more"),
            "call_time_limit": (self.call_time_limit > 0, "more than 0 seconds"),
            "time_limit": (self.time_limit is None or self.time_limit > 0, "more than 0 seconds, or null"),
            "history": (self.history in ("append", "as_template"), "append or as_template"),
            "max_fault_share": (0 < self.max_fault_share <= 1, "above 0, at most 1"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"model.turns.{name}={getattr(self, name)} cannot work. Choose {rule}.")

    def longest_wait(self, asking: float = 0.0) -> float:
        """Seconds that a rollout may take where every call takes all of its time.

        Args:
            asking: Of these, for a turn of the policy.

        Example:
            >>> Turns(max_turns=4, call_time_limit=10).longest_wait(asking=5)  # 4 turns; the start, the final reward, the end
            90.0
            >>> Turns(max_turns=4, call_time_limit=10, time_limit=20).longest_wait(asking=5)  # and the turn at 20 s
            65.0
        """
        turn = asking + self.call_time_limit
        played = self.max_turns * turn
        if self.time_limit is not None:
            played = min(played, self.time_limit + turn)
        return float(played + 3 * self.call_time_limit)


DEFAULT_TURNS = Turns()


@dataclass(frozen=True, kw_only=True)
class ToolSettings:
    """What the policy talks to.

    Args:
        tools: Functions that the policy may call, by import path: with type hints and a Google docstring, sync or async. Or
            class_path and init_args of a source of tools, such as a server's.
        environment: A class whose methods the policy may call (TRL's environment_factory), by import path, or class_path and
            init_args; or several of these by the name that a row gives in its column ``environment``.
        rollout_func: A function of one's own in place of both, by import path, as TRL's rollout_func: of prompts, each
            num_generations times, and a trainer to sample with; it returns prompt_ids, completion_ids, logprobs, ...
        turns: Budgets of rollouts of several turns; without tools or environment there is one turn.
    """

    tools: list[str | dict[str, Any] | Callable[..., Any]] | None = None
    environment: (
        str | dict[str, str | dict[str, Any] | list[Any] | bool | int | float | None] | Callable[..., Any] | None
    ) = None
    rollout_func: str | Callable[..., Any] | None = None
    turns: Turns = DEFAULT_TURNS

    def __post_init__(self) -> None:
        if self.rollout_func is not None and (self.has_turns or self.turns != DEFAULT_TURNS):
            raise ValueError(
                "model.rollout_func makes rollouts itself, so that model.tools, model.environment and model.turns have no effect. "
                "Leave them out, or rollout_func."
            )
        if not self.has_turns and self.turns != DEFAULT_TURNS:
            raise ValueError(
                "model.turns has no effect without model.tools or model.environment. Leave it out, or set one."
            )

    @property
    def has_turns(self) -> bool:
        """Whether there is anything to talk to."""
        return bool(self.tools) or self.environment is not None
