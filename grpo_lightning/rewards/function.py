"""A plain function, or an ``async def``, as a reward."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from grpo_lightning.messages import Prompt
from grpo_lightning.rewards.base import (
    CALLING,
    OURS_ALONE,
    UNNAMED,
    BaseRewardFunction,
    Completion,
    RewardValues,
    accepted_arguments,
    asks_for,
    on_offer,
)


@dataclass
class FunctionReward(BaseRewardFunction):
    """Wraps a function in TRL's form; it receives the arguments that it names, or all of TRL's with ``**kwargs``.

    Both spellings of the token ids are on offer: ``completion_ids`` (TRL), and by name ``completions_ids`` (here).

    Args:
        name: Defaults to the function's own name.
        weight: Factor in the total reward.
        function: Called with lists of one entry per completion.
        settings: Further keyword arguments, the same at every call.
        scope: How it may be called, like the next four; see BaseRewardFunction. Attributes of the same names on the
            function itself are the defaults.
        batched: As there.
        concurrency: As there.
        isolation: As there.
        call_time_limit: As there.

    Example:
        >>> def is_short(completions, limit=3):
        ...     return [float(len(text) <= limit) for text in completions]
        >>> reward = FunctionReward(function=is_short, settings={"limit": 4})
        >>> reward.name, reward(prompts=["p", "p"], completions=["four", "fives"])
        ('is_short', [1.0, 0.0])
    """

    function: Callable[..., Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    scope: str = ""
    batched: bool | None = None  # type: ignore[assignment]  # a bool once constructed, as are the others' types
    concurrency: int | None = None  # type: ignore[assignment]
    isolation: str = ""
    call_time_limit: float | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"FunctionReward wraps a function, got {self.function!r}.")
        if self.name == UNNAMED:
            self.name = function_name(self.function)
        for setting in CALLING:
            if getattr(self, setting) in (None, ""):
                setattr(self, setting, getattr(self.function, setting, getattr(BaseRewardFunction, setting)))
        signature = inspect.signature(self.function)
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
        unknown = set() if open_ended else set(self.settings) - set(signature.parameters)
        if unknown:
            raise ValueError(
                f"Reward '{self.name}' has no argument {', '.join(sorted(unknown))}; its signature is {signature}."
            )

    @property
    def is_async(self) -> bool:
        """True for ``async def``, for a ``partial`` of one, and for an object whose ``__call__`` is one."""
        inner: Any = self.function
        while isinstance(inner, functools.partial):
            inner = inner.func
        return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(getattr(inner, "__call__", None))  # noqa: B004

    def check_columns(self, columns: Collection[str]) -> None:
        """As its function's arguments say."""
        assert self.function is not None  # checked on construction
        accepted_arguments(self.function, on_offer(self, [*columns, *self.settings]), self.name)

    def __call__(
        self,
        prompts: list[Prompt],
        completions: list[Completion],
        completions_ids: list[list[int]] | None = None,
        trainer_state: Any | None = None,
        **columns: Any,
    ) -> RewardValues | None:
        """Calls the function; a coroutine function's coroutine is returned as it is."""
        assert self.function is not None  # checked on construction
        arguments = {
            "prompts": prompts,
            "completions": completions,
            "completions_ids": completions_ids,
            "completion_ids": completions_ids,
            "trainer_state": trainer_state,
            **columns,
            **self.settings,
        }
        asked = {name: value for name, value in arguments.items() if name not in OURS_ALONE or asks_for(self, name)}
        return self.function(**accepted_arguments(self.function, asked, self.name))


def function_name(function: Callable[..., Any]) -> str:
    """A function's own name; that of the inner one for a ``partial``, of the class for a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)
