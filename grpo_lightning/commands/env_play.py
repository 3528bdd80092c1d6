"""One episode, turn by turn, on the screen; who plays is another matter."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from grpo_lightning.environments import Episode, EpisodeFactory, behind_prompt
from grpo_lightning.messages import Message
from grpo_lightning.rollouts.turns.rollout import assistant_message, tool_message, unreadable_message
from grpo_lightning.rollouts.turns.tool_call_formats import ReadTurn, ToolCall

HELP = 'Write a turn, or /TOOL {"argument": value} to call a tool; /quit ends.'


class Player(Protocol):
    """Plays the policy's part."""

    def __call__(
        self, conversation: list[Message], news: list[Message], tools: list[dict[str, Any]]
    ) -> ReadTurn | None:
        """The next turn; None to stop.

        Args:
            conversation: All so far.
            news: Of it, what came since this player's last turn.
            tools: Schemas.
        """
        ...


class Keyboard:
    """Turns from standard input."""

    def __init__(self) -> None:
        self._has_started = False

    def __call__(
        self, conversation: list[Message], news: list[Message], tools: list[dict[str, Any]]
    ) -> ReadTurn | None:
        """See :class:`Player`."""
        if not self._has_started:
            print(HELP)
            for tool in tools:
                names = ", ".join(tool["function"]["parameters"].get("properties", {}))
                print(f"  /{tool['function']['name']} {names}: {tool['function']['description']}")
            self._has_started = True
        print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            return None
        text = line.rstrip("\n")
        if not text.startswith("/"):
            return ReadTurn(text)
        name, _, arguments = text[1:].partition(" ")
        return ReadTurn("", [ToolCall(name, arguments.strip())])


async def play_episode(
    factory: EpisodeFactory, row: dict[str, Any], prompt: list[Message], player: Player, max_turns: int
) -> int:
    """Plays until the environment is done, the player stops, or a turn gets no answer; then shows the rewards."""
    episode = factory(row)

    def show(messages: list[Message]) -> None:
        show_messages([m for m in messages if m["role"] != "assistant" or not isinstance(player, Keyboard)])

    try:
        conversation = behind_prompt(prompt, await episode.reset(row))
        show_messages(conversation)
        reason = await play_turns(episode, conversation, list(conversation), player, max_turns, show)
        print(f"end: {reason}")
        print(f"rewards of turns: {episode.rewards}, of the episode: {await episode.final_reward()}")
    finally:
        await episode.close()
    return 0


async def play_turns(
    episode: Episode,
    conversation: list[Message],
    news: list[Message],
    player: Player,
    max_turns: int,
    show: Callable[[list[Message]], None],
) -> str:
    """Why no further turn comes: done, eos, max_turns or quit.

    Args:
        episode: Answers the player.
        conversation: So far; what is said is added to it.
        news: Its end, which the player has not seen.
        player: Gives the turns.
        max_turns: Of the player.
        show: Gets each turn and each answer as it comes.
    """
    for _ in range(max_turns):
        if episode.done:
            return "done"
        turn = player(conversation, news, episode.tools)
        if turn is None:
            return "quit"
        first = sum(len(message.get("tool_calls", ())) for message in conversation)
        conversation.append(assistant_message(turn, first))
        show(conversation[-1:])
        news = await _answers(episode, turn, first)
        conversation += news
        show(news)
        if not news:
            return "done" if episode.done else "eos: nothing answers a turn without a tool call"
    return "done" if episode.done else "max_turns"


async def _answers(episode: Episode, turn: ReadTurn, first: int) -> list[Message]:
    """What comes back, as in a rollout; ``first`` is the number of the turn's first call."""
    answers: list[Message] = []
    for n, call in enumerate(turn.calls):
        if episode.done:
            break
        result = await episode.call(call.name, call.arguments)
        answers.append(tool_message(call.name, result.content, first + n))
    for n, why in enumerate(turn.unreadable, start=len(turn.calls)):
        answers.append(unreadable_message(why, first + n))
    if not answers and not episode.done:
        return await episode.respond(turn.content) or []
    return answers


def show_messages(messages: Iterable[Message]) -> None:
    """Prints what was said, what was called and what came back, a line each."""
    for message in messages:
        name = f" {message['name']}" if "name" in message else ""
        if message["content"] or not message.get("tool_calls"):
            print(f"{message['role']}{name}: {message['content']}", flush=True)
        for call in message.get("tool_calls", ()):
            arguments = call["function"]["arguments"]
            shown = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            print(f"{message['role']} calls {call['function']['name']} {shown}", flush=True)
