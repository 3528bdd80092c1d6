"""One episode, turn by turn, on the screen; who plays is another matter."""

from __future__ import annotations

import json
import sys
from typing import Any, Protocol

from grpo_lightning.environments import Episode, EpisodeFactory, behind_prompt
from grpo_lightning.messages import Message
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
    try:
        conversation = behind_prompt(prompt, await episode.reset(row))
        _show(conversation)
        news = list(conversation)
        reason = "max_turns"
        for _ in range(max_turns):
            if episode.done:
                reason = "done"
                break
            turn = player(conversation, news, episode.tools)
            if turn is None:
                reason = "quit"
                break
            conversation.append(_as_message(turn))
            _show(conversation[-1:], unless=isinstance(player, Keyboard))
            answers = await _answers(episode, turn)
            if not answers:
                reason = "done" if episode.done else "eos: nothing answers a turn without a tool call"
                break
            conversation += answers
            news = answers
            _show(answers)
        print(f"end: {'done' if episode.done else reason}")
        print(f"rewards of turns: {episode.rewards}, of the episode: {await episode.final_reward()}")
    finally:
        await episode.close()
    return 0


async def _answers(episode: Episode, turn: ReadTurn) -> list[Message]:
    answers: list[Message] = []
    for call in turn.calls:
        result = await episode.call(call.name, call.arguments)
        answers.append({"role": "tool", "name": call.name, "content": result.content})
    answers += [
        {"role": "tool", "name": "unknown", "content": f"This is no tool call: {why}."} for why in turn.unreadable
    ]
    return answers or (await episode.respond(turn.content)) or []


def _as_message(turn: ReadTurn) -> Message:
    message: Message = {"role": "assistant", "content": turn.content}
    if turn.calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in turn.calls
        ]
    return message


def _show(messages: list[Message], unless: bool = False) -> None:
    for message in () if unless else messages:
        name = f" {message['name']}" if "name" in message else ""
        if message["content"] or not message.get("tool_calls"):
            print(f"{message['role']}{name}: {message['content']}", flush=True)
        for call in message.get("tool_calls", ()):
            arguments = call["function"]["arguments"]
            shown = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            print(f"{message['role']} calls {call['function']['name']} {shown}", flush=True)
