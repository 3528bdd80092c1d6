"""One rollout of several turns: the policy speaks, tools or the environment answer, until one of them ends it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from grpo_lightning.environments import EnvironmentFault, Episode, EpisodeFactory, behind_prompt
from grpo_lightning.errors import RefusedRowError
from grpo_lightning.generation.turns import TurnRequest
from grpo_lightning.messages import StopReason
from grpo_lightning.rollouts.turns.chat_form import ChatForm
from grpo_lightning.rollouts.turns.history import next_context
from grpo_lightning.rollouts.turns.settings import Turns
from grpo_lightning.rollouts.turns.token_trail import TokenTrail
from grpo_lightning.rollouts.turns.tool_call_formats import ReadTurn
from grpo_lightning.rollouts.turns.turn_loop import Ask
from grpo_lightning.seeds import derive_seed
from grpo_lightning.types import Conversation, Message


@dataclass(frozen=True)
class PlayedRollout:
    """A rollout that has ended."""

    trail: TokenTrail
    conversation: Conversation
    truncated: bool
    """Whether max_completion_length or max_turn_length cut it off."""
    fault: str = ""
    """What the environment did wrong."""


@dataclass(frozen=True)
class Assignment:
    """What a rollout is played on."""

    number: int
    """Its place among those that are played together."""
    name: str
    """What errors call its row."""
    messages: list[Message]
    row: dict[str, Any]
    """The prompt and the columns of its row, for the environment."""
    seed: int
    """Of the prompt and the rollout; each turn has its own."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Of its row."""


class RolloutPlayer:
    """Plays rollouts, each a coroutine of its own.

    Args:
        make_episode: Gives each rollout its environment.
        form: Renders and reads turns.
        turns: Budgets.
        limit: Tokens of a completion: all turns and what is said between them.
        context: Tokens of a prompt with its completion that the model or its engine takes; None for any number. Schemas of
            tools and what an environment says come behind the data's check of lengths.
    """

    def __init__(
        self, make_episode: EpisodeFactory, form: ChatForm, turns: Turns, limit: int, context: int | None = None
    ) -> None:
        self.make_episode, self.form, self.turns, self.limit = make_episode, form, turns, limit
        self.context = context

    async def play(self, task: Assignment, ask: Ask) -> PlayedRollout:
        """The whole rollout; a fault of the environment ends it and is no exception."""
        state, form = _Playing(TokenTrail([]), time.monotonic()), self.form.with_kwargs(task.template_kwargs)
        episode: Episode | None = None
        try:
            episode = self.make_episode(task.row)
            state.opening = await episode.reset(task.row)
            state.written = behind_prompt(task.messages, form.quoted(state.opening))
            with faults_of_what_was_said(state.opening):
                prompt_ids = form.prompt_ids(state.written, episode.tools)
            self._check_room(task.name, len(prompt_ids), EnvironmentFault if state.opening else RefusedRowError)
            state.trail.prompt_ids = prompt_ids
            stop = await self._turns(_Table(task, episode, form, ask), state)
            final = await episode.final_reward()
        except EnvironmentFault as error:
            return state.ended("fault", None, episode, str(error))
        finally:
            if episode is not None:
                await episode.close()
        return state.ended(stop, final, episode)

    async def _turns(self, table: _Table, state: _Playing) -> StopReason:
        trail, episode, form = state.trail, table.episode, table.form
        while True:
            turn = await table.ask(self._request(table.task, state))
            read = form.read(turn.ids, trail.context, episode.tools)
            trail.add_sampled(turn)
            state.rewards.append(0.0)
            spoken = assistant_message(read, state.calls)
            state.messages.append(spoken)
            if turn.truncated:
                return "max_tokens"
            known = len(episode.rewards)
            answers = await self._answers(episode, read, state)
            state.rewards[-1] = float(sum(episode.rewards[known:]))
            state.messages += answers
            if stop := self._stop(episode, answers, state):
                return stop
            state.written += [*form.quoted([spoken], own=turn.ids[:-1]), *form.quoted(answers)]
            with faults_of_what_was_said(answers):
                given = next_context(form, self.turns.history, state.written, len(answers), episode.tools, trail, turn)
            if not given.fits(trail, self.limit, self.context):
                return "max_tokens"
            given.add_to(trail)

    def _request(self, task: Assignment, state: _Playing) -> TurnRequest:
        room = state.trail.room(self.limit, self.context)
        limit = min(room, self.turns.max_turn_length or room)
        seed = derive_seed(task.seed, len(state.rewards))
        return TurnRequest(task.number, state.trail.context, seed, limit)

    def _check_room(self, name: str, length: int, error: type[Exception]) -> None:
        if self.context is not None and length >= self.context:
            raise error(
                f"{name} with the schemas of the tools and what the environment says first has {length} "
                f"tokens, and the model or its engine takes {self.context} with the completion. Lower "
                "data.max_prompt_length, offer fewer tools, or raise model.generator.init_args.max_model_length where the "
                "model has the positions."
            )

    def _stop(self, episode: Episode, answers: list[Message], state: _Playing) -> StopReason | None:
        """Why nothing comes after a turn and its answers; None where the policy speaks again."""
        if episode.done:
            return "done"
        if not answers:
            return "eos"
        if len(state.rewards) == self.turns.max_turns:
            return "max_turns"
        limit = self.turns.time_limit
        return "time" if limit is not None and time.monotonic() - state.started > limit else None

    async def _answers(self, episode: Episode, read: ReadTurn, state: _Playing) -> list[Message]:
        """What tools say to the turn's calls, one after the other; to a turn without, what the environment says."""
        first, answers = state.calls, list[Message]()
        state.calls += len(read.calls) + len(read.unreadable)
        state.mistakes += len(read.unreadable)
        for n, call in enumerate(read.calls):
            if episode.done:
                break
            result = await episode.call(call.name, call.arguments)
            state.mistakes += result.mistake
            answers.append(tool_message(call.name, result.content, first + n))
        for n, why in enumerate(read.unreadable):
            answers.append(unreadable_message(why, first + len(read.calls) + n))
        if not answers and not episode.done:
            return await episode.respond(read.content) or []
        return answers


@dataclass(frozen=True)
class _Table:
    """Who takes part in a rollout."""

    task: Assignment
    episode: Episode
    form: ChatForm
    ask: Ask


@dataclass
class _Playing:
    """What has happened so far in a rollout."""

    trail: TokenTrail
    started: float
    opening: list[Message] = field(default_factory=list)
    """What the environment said first."""
    messages: list[Message] = field(default_factory=list)
    """What came behind the prompt, as it was said."""
    written: list[Message] = field(default_factory=list)
    """The whole conversation as the chat template gets it."""
    rewards: list[float] = field(default_factory=list)
    """One for each turn."""
    calls: int = 0
    mistakes: int = 0

    def ended(
        self, stop: StopReason, final_reward: float | None, episode: Episode | None, fault: str = ""
    ) -> PlayedRollout:
        """The rollout as it is now."""
        instance = getattr(episode, "environment", None)
        conversation = Conversation(
            self.messages,
            stop,
            self.rewards,
            final_reward,
            calls=self.calls,
            mistakes=self.mistakes,
            opening=self.opening,
            environment=instance,
        )
        return PlayedRollout(self.trail, conversation, stop == "max_tokens", fault)


@contextmanager
def faults_of_what_was_said(messages: Sequence[Message]) -> Iterator[None]:
    """Makes it the environment's fault where the chat template refuses its messages, such as two of the user in a row.

    What makes a template unusable for anybody stays a ValueError.
    """
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # templates raise their own kinds
        if not messages:
            raise
        roles = ", ".join(str(message["role"]) for message in messages)
        raise EnvironmentFault(
            f"The chat template does not write what was said ({roles}) where it was said: {error}"
        ) from error


def assistant_message(read: ReadTurn, calls_before: int) -> Message:
    """A turn of the policy as a message, in the form of chat templates and of TRL's completions."""
    message: Message = {"role": "assistant", "content": read.content}
    if read.calls:
        message["tool_calls"] = [
            {
                "type": "function",
                "id": call_id(calls_before + n),
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for n, call in enumerate(read.calls)
        ]
    return message


def tool_message(name: str, content: str, number: int) -> Message:
    """What a tool said to a call."""
    return {"role": "tool", "name": name, "content": content, "tool_call_id": call_id(number)}


def unreadable_message(why: str, number: int) -> Message:
    """What is said to a call that could not be read."""
    return tool_message("unreadable_call", f"Error: the tool call could not be read: {why}. Write it again.", number)


def call_id(number: int) -> str:
    """Nine letters and digits, as Mistral's templates demand.

    Example:
        >>> call_id(3)
        'call00003'
    """
    return f"call{number:05d}"
