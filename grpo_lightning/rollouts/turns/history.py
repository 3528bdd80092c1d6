"""What the policy reads before its next turn: the history as it was sampled, or as the chat template writes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grpo_lightning.generation.turns import SampledTurn
from grpo_lightning.rollouts.turns.chat_form import ChatForm
from grpo_lightning.rollouts.turns.same_start import same_start
from grpo_lightning.rollouts.turns.token_trail import TokenTrail
from grpo_lightning.types import Message


@dataclass(frozen=True)
class NextContext:
    """Tokens before the next turn."""

    ids: list[int]
    """That are not the policy's."""
    kept: int | None = None
    """Tokens of the prompt that they follow; None where they follow everything before them."""

    def add_to(self, trail: TokenTrail) -> None:
        """Goes on with them."""
        if self.kept is None:
            trail.add_given(self.ids)
        else:
            trail.begin_history(self.kept, self.ids)

    def fits(self, trail: TokenTrail, limit: int, context: int | None) -> bool:
        """Whether a token of a turn finds room behind them."""
        behind = len(trail.context) if self.kept is None else self.kept
        if len(trail.ids) + len(self.ids) >= limit:
            return False
        return context is None or behind + len(self.ids) < context


def next_context(
    form: ChatForm,
    kind: Literal["append", "as_template"],
    messages: Sequence[Message],
    answers: int,
    tools: Sequence[dict[str, Any]],
    trail: TokenTrail,
    turn: SampledTurn,
) -> NextContext:
    """What comes before the policy's next turn.

    Args:
        form: Of the model.
        kind: ``model.turns.history``.
        messages: The whole conversation, quoted by the form where it is not the data's.
        answers: How many of its last messages answer the turn.
        tools: Schemas, as in the prompt.
        trail: Tokens so far, with the turn.
        turn: The last one.

    Raises:
        ValueError: If the template cannot be used in this way.
    """
    asked, said = messages[: -answers - 1], messages[-answers:]
    if kind == "append" or form.keeps_turn(asked, messages[-answers - 1], said, tools, _text(form, turn)):
        return NextContext(form.suffix_ids(said, tools, turn.ids[-1] in form.end_ids))
    written = form.prompt_ids(messages, tools)
    kept = same_start(written, trail.prompt_ids)
    if kept == 0:
        raise ValueError(
            "The chat template begins a conversation otherwise once a turn has been answered, so that no token of the prompt "
            "is left. Use model.turns.history=append, or give model.chat_template_kwargs another chat_template."
        )
    return NextContext(written[kept:], kept)


def _text(form: ChatForm, turn: SampledTurn) -> str:
    return str(form.tokenizer.decode(turn.ids, skip_special_tokens=False))
