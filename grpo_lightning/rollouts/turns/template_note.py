"""What a model's chat template means for rollouts of several turns, in words for the start of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from grpo_lightning.rollouts.turns.chat_form import PROBE, ChatForm
from grpo_lightning.rollouts.turns.dummy_exchange import MARK, dummy_exchange
from grpo_lightning.types import Message

HIDES_TOOLS = (
    "The chat template does not show the policy its tools: unless the prompts describe them, it never hears of them. Give "
    "model.chat_template_kwargs a chat_template that writes tools and calls."
)


def template_note(form: ChatForm, has_tools: bool, history: Literal["append", "as_template"] = "append") -> str:
    """How calls are read, and what ``model.turns.history`` means where the template writes earlier turns otherwise."""
    said: list[Message] = [{"role": "user", "content": "?"}]
    result: list[Message] = [{"role": "tool", "name": PROBE.name, "content": "1", "tool_call_id": "call00000"}]
    kinds = [("what the user says", said), *([("the result of a tool", result)] if has_tools else [])]
    changed = [name for name, messages in kinds if not keeps_history(form, messages)]
    calls = f"Tool calls are read as {form.format_name}. " if has_tools else ""
    if has_tools and not shows_tools(form):
        calls = f"{calls}{HIDES_TOOLS} "
    if not changed:
        return f"{calls}The chat template keeps earlier turns as they are, as training does."
    means = {
        "append": "The policy reads its turns as they were sampled, whole; where it is used later, keep its reasoning in the "
        "conversation too, or set model.turns.history=as_template.",
        "as_template": "There the policy goes on from what the template writes, as where it is used later; such a rollout "
        "has several histories, each computed of its own, and counts as one completion.",
    }
    return (
        f"{calls}The chat template writes earlier turns otherwise behind {' and '.join(changed)} (it leaves out their "
        f"reasoning, for one). {means[history]}"
    )


def shows_tools(form: ChatForm) -> bool:
    """Whether a prompt names the tools that the policy may call; a template that knows none leaves them out without a word."""
    parameters = {
        "type": "object",
        "properties": {"text": {"type": "string", "description": "?"}},
        "required": ["text"],
    }
    function = {"name": PROBE.name, "description": "?", "parameters": parameters}
    return PROBE.name in form.render([{"role": "user", "content": "?"}], [{"type": "function", "function": function}])


def keeps_history(form: ChatForm, messages: Sequence[Message]) -> bool:
    """Whether the template renders a turn of the policy in the same way once these messages follow it."""
    thought: Message = {"role": "assistant", "content": f"<think>\n{MARK}\n</think>\n\n{MARK}"}
    asked, answer = dummy_exchange(messages)
    calls = answer.get("tool_calls")
    return form.keeps_turn([asked], {**thought, "tool_calls": calls} if calls else thought, messages, [])
