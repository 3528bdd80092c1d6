"""One call of one reward: what it sees, and how it is made."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grpo_lightning.messages import Conversation, Prompt
from grpo_lightning.rewards.base import (
    RESERVED,
    BaseRewardFunction,
    Completion,
    RewardContractError,
    RewardState,
    accepted_arguments,
    asks_for,
)
from grpo_lightning.rewards.runtime.answer_checks import checked_values
from grpo_lightning.rewards.runtime.call_deadline import within
from grpo_lightning.rewards.runtime.event_loop import in_thread
from grpo_lightning.rewards.runtime.main_thread import MainThreadCall, MainThreadCalls
from grpo_lightning.rewards.runtime.outcome import Loggers, Outcome
from grpo_lightning.rewards.runtime.signal_probe import SignalProbe

if TYPE_CHECKING:  # a reward's process reads this file, and does without torch
    from grpo_lightning.rewards.runtime.call_guard import CallGuard


@dataclass(frozen=True)
class CallRows:
    """The completions that a call sees, with all that rewards may know about them."""

    prompts: list[Prompt]
    completions: list[Completion]
    completions_ids: list[list[int]]
    columns: dict[str, list[Any]]
    state: RewardState
    group: list[int] = field(default_factory=list)
    """The prompt of each; empty for one prompt."""
    logprobs: list[list[float]] | None = None
    """Of each completion those of its tokens; None where no sampler is known."""
    conversations: list[Conversation | None] = field(default_factory=list)
    """Of each completion what happened in its turns; empty or None for completions of one turn."""

    def __post_init__(self) -> None:
        sizes = {"prompts": len(self.prompts), "completions_ids": len(self.completions_ids)}
        sizes |= {name: len(values) for name, values in self.columns.items()}
        sizes |= {"entries of group": len(self.group)} if self.group else {}
        sizes |= {"logprobs": len(self.logprobs)} if self.logprobs is not None else {}
        wrong = ", ".join(f"{size} {name}" for name, size in sizes.items() if size != len(self))
        if wrong:
            raise RewardContractError(f"There are {len(self)} completions, but {wrong}: each needs one entry.")
        taken = ", ".join(sorted(RESERVED & set(self.columns)))
        if taken:
            raise RewardContractError(f"The dataset has columns named like reward arguments: {taken}. Rename them.")

    def __len__(self) -> int:
        return len(self.completions)

    def take(self, rows: Sequence[int]) -> CallRows:
        """These completions alone."""

        def chosen(values: Sequence[Any]) -> list[Any]:
            return [values[row] for row in rows]

        columns = {name: chosen(values) for name, values in self.columns.items()}
        of_each = (chosen(self.prompts), chosen(self.completions), chosen(self.completions_ids))
        group, logprobs = self.group and chosen(self.group), self.logprobs and chosen(self.logprobs)
        return CallRows(
            *of_each, columns, self.state, group, logprobs, self.conversations and chosen(self.conversations)
        )

    def arguments(self) -> dict[str, Any]:
        """Fresh lists for every call: a reward that sorts its arguments in place must not disturb the next one."""
        return {
            "prompts": list(self.prompts),
            "completions": list(self.completions),
            "completions_ids": list(self.completions_ids),
            "trainer_state": self.state,
            **{name: list(values) for name, values in self.columns.items()},
        }

    def on_request(self) -> dict[str, Any]:
        """What only those rewards get that name it, and a column of the data does not stand for."""
        offers: dict[str, list[Any] | None] = {"group": self.group or [0] * len(self), "logprobs": self.logprobs}
        if any(self.conversations):
            offers["environments"] = [each and each.environment for each in self.conversations]
            offers["turn_rewards"] = [each and list(each.rewards) for each in self.conversations]
            offers["final_rewards"] = [each and each.final_reward for each in self.conversations]
        return {name: list(v) for name, v in offers.items() if v is not None and name not in self.columns}


def prepare_call(reward: BaseRewardFunction, rows: CallRows) -> tuple[dict[str, Any], Outcome]:
    """The keyword arguments of one call, and the outcome that its loggers write into.

    Raises:
        RewardContractError: If the reward needs a column that the data does not have.
    """
    outcome = Outcome([])
    requested = rows.on_request()
    on_request = {name: value for name, value in requested.items() if asks_for(reward, name)}
    if any(instance is not None for instance in requested.get("environments", ())):
        on_request["environments"] = requested["environments"]  # TRL gives them to all, also among **kwargs
    on_offer = {**rows.arguments(), **on_request, **Loggers(reward.name, len(rows), outcome).arguments()}
    return accepted_arguments(reward.__call__, on_offer, reward.name), outcome


class MainThreadNeededError(Exception):
    """A call in another thread that asked for what Python gives to the main thread alone; what it gave is worthless."""


@dataclass
class WatchedCall:
    """A call that a guard limits and a probe listens to, on whichever thread it is made."""

    reward: BaseRewardFunction
    arguments: dict[str, Any]
    count: int
    """Completions in it."""
    guard: CallGuard
    time_limit: float
    probe: SignalProbe = field(default_factory=SignalProbe)

    def made(self) -> Any:
        """The checked answer of a plain reward, made in this thread; of one that returns a coroutine, the coroutine."""
        with self.probe, self.guard.call(self.reward.name, self.count, self.time_limit):
            result = self.reward(**self.arguments)
            # What it returned may be its own code, too: an object's __float__, a tensor still to be computed.
            return result if inspect.isawaitable(result) else checked_values(result, self.count, self.reward.name)

    async def answer(self, main_call: MainThreadCall | None) -> list[float]:
        """The checked answer; made on this loop, in a thread of its own or by the main thread."""
        if self.reward.is_async:
            result: Any = self.reward(**self.arguments)  # a coroutine, which does nothing yet
        elif main_call is None:
            result = await in_thread(self.made)
        else:
            result = await asyncio.wrap_future(main_call.result)
        if inspect.isawaitable(result):  # a plain function may return a coroutine
            with self.probe, self.guard.call(self.reward.name, self.count, self.time_limit, owns_thread=False):
                return checked_values(await result, self.count, self.reward.name)
        return result


async def call_reward(
    reward: BaseRewardFunction,
    rows: CallRows,
    time_limit: float,
    guard: CallGuard,
    main_thread: MainThreadCalls | None = None,
) -> Outcome:
    """Calls the reward once: on this loop if it is asynchronous, else in a thread of its own or in the main thread.

    A thread that runs out of time cannot be stopped; its result is not waited for any longer.

    Args:
        reward: To be called.
        rows: What it sees.
        time_limit: Seconds from the start of the call.
        guard: Entered where the call is made.
        main_thread: Where a synchronous call is made; None for a thread of its own.

    Raises:
        RewardContractError: If a column is missing or the answer is malformed.
        CallTimeoutError: If the call takes longer than ``time_limit`` seconds.
        MainThreadNeededError: If it asked for signals outside of the main thread, whatever it gave or raised then.
        Exception: Whatever the reward raises.
    """
    arguments, outcome = prepare_call(reward, rows)
    call = WatchedCall(reward, arguments, len(rows), guard, time_limit)
    main_call = None if main_thread is None else main_thread.submit(reward.name, call.made)
    if main_call is not None:
        await asyncio.wrap_future(main_call.started)
    started = time.perf_counter()
    try:
        outcome.rewards = await within(time_limit, lambda: call.answer(main_call), reward)
    except Exception as error:
        if call.probe.asked:
            raise MainThreadNeededError from error
        raise
    if call.probe.asked:
        raise MainThreadNeededError
    outcome.seconds.append(time.perf_counter() - started)
    return outcome
