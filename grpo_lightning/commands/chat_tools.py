"""``chat --tools``: a conversation in which the policy calls the tools, or talks to the environment, that its run had."""

from __future__ import annotations

import asyncio
from typing import Any

from grpo_lightning.commands.env_model import ModelPlayer
from grpo_lightning.commands.env_play import play_turns, show_messages
from grpo_lightning.environments import (
    EnvironmentContractError,
    EnvironmentFault,
    Episode,
    EpisodeFactory,
    behind_prompt,
    open_episodes,
)
from grpo_lightning.messages import Message
from grpo_lightning.policy.end_of_sequence import end_of_sequence_ids
from grpo_lightning.rollouts.turns.chat_form import ChatForm
from grpo_lightning.rollouts.turns.settings import Turns


class ToolChat:
    """See :class:`~grpo_lightning.commands.chat.Chat`; calls and what comes back are printed as they happen.

    An episode lasts until :meth:`reset`, until its environment is done, or until a fault ends it.

    Args:
        player: The policy.
        make_episode: What it talks to.
        turns: Of a run; ``max_turns`` holds for each prompt.
        row: Columns that ``reset`` of the environment gets.
        system: System prompt, or None.
    """

    def __init__(
        self,
        player: ModelPlayer,
        make_episode: EpisodeFactory,
        turns: Turns,
        row: dict[str, Any],
        system: str | None = None,
    ) -> None:
        self.player, self.make_episode, self.turns, self.row, self.system = player, make_episode, turns, row, system
        self.messages: list[Message] = []
        self._episode: Episode | None = None
        self._runner = asyncio.Runner()

    def reset(self) -> None:
        """Forgets the conversation and lets its environment go."""
        episode, self._episode = self._episode, None
        self.messages, self.player.ids = [], []
        if episode is not None:
            self._runner.run(episode.close())

    def answer(self, prompt: str) -> str:
        """What the policy says last, once nothing answers it any more."""
        held: list[Message] = []

        def show(messages: list[Message]) -> None:
            """The policy's latest words wait, as they may be the answer."""
            if messages:
                show_messages(held)
                held[:] = messages if messages[-1]["role"] == "assistant" else []
                show_messages(messages if not held else [])

        try:
            end = self._runner.run(self._play({"role": "user", "content": prompt}, show))
        except EnvironmentFault as fault:
            show_messages(held)
            self.reset()
            return f"[fault: {fault}]"
        if end == "done":
            show_messages(held)
            self.reset()
            return "[the environment ended the episode]"
        if end == "max_turns":
            show_messages(held)
            self.reset()
            return f"[stopped after model.turns.max_turns={self.turns.max_turns} turns]"
        return str(held[-1]["content"]) if held else ""

    async def _play(self, said: Message, show: Any) -> str:
        if self._episode is None:
            asked: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
            row = {"prompt": [*asked, said], **self.row}
            self._episode = self.make_episode(row)
            opening = await self._episode.reset(row)
            self.messages = behind_prompt([*asked, said], opening)
            news = list(self.messages)
            show_messages(opening)
        else:
            self.messages.append(said)
            news = [said]
        return (
            await play_turns(self._episode, self.messages, news, self.player, self.turns.max_turns, show)
        ).partition(":")[0]

    def close(self) -> None:
        """Lets environments and tools go."""
        self.reset()
        self._runner.run(self.make_episode.close())
        self._runner.close()


def open_tool_chat(
    policy: Any,
    tokenizer: Any,
    model: dict[str, Any],
    row: dict[str, Any],
    system: str | None = None,
    temperature: float = 0.0,
    max_completion_length: int = 512,
) -> ToolChat:
    """A chat with the tools and the environment of a run's config, the code of which is imported.

    Args:
        policy, tokenizer: In memory.
        model: The section ``model`` of the config.
        row: Columns for ``reset``.
        system: System prompt, or None.
        temperature: 0 for the likeliest token.
        max_completion_length: Tokens of a turn.

    Raises:
        EnvironmentContractError: If the run had neither, or its code cannot be used.
        ValueError: If the chat template cannot do it.
    """
    turns = Turns(**(model.get("turns") or {}))
    kwargs = model.get("chat_template_kwargs") or {}
    form = ChatForm(tokenizer, end_of_sequence_ids(policy, tokenizer), kwargs, turns.tool_call_format)
    factory = open_episodes(
        model.get("tools"),
        model.get("environment"),
        turns.call_time_limit,
        turns.max_tool_response_length,
        turns.tool_exceptions,
    )
    if factory is None:
        raise EnvironmentContractError(
            "--tools: the run's config has neither model.tools nor model.environment. Leave --tools out, or name the config "
            "that has them with --config."
        )
    return ToolChat(ModelPlayer(policy, form, max_completion_length, temperature), factory, turns, row, system)
