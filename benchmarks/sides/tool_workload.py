"""Rollouts of several turns with a slow tool: what both sides are given, and what makes their turns as many."""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

from transformers import PreTrainedTokenizerBase

from sides.workload import LARGE, NANO, TINY, Workload

RESULT = (
    "After 17 days, Nadia counts 23 lamps fewer than before. A box holds 211 cards, and there are 9 boxes in the store."
)
"""What the tool says, in words of the prompts, so that it is as many tokens for a tokenizer of theirs."""
CHAT_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}<tool_call>{{ call['function'] | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class ToolWorkload(Workload):
    """A comparison of rollouts of ``turns`` turns, all but the last with one call; ``mean_length`` is of a turn."""

    turns: int = 3
    shortest_call: float = 0.2
    """Seconds."""
    longest_call: float = 2.0

    @property
    def calls(self) -> int:
        """Of all rollouts of a step."""
        return self.prompts_per_step * self.num_generations * (self.turns - 1)


def _with_tool(workload: Workload, **changes: Any) -> ToolWorkload:
    return replace(ToolWorkload(**vars(workload)), steps=1, warmup_steps=1, **changes)


TOOL_WORKLOADS = {
    "nano": _with_tool(NANO, max_completion_length=512, shortest_call=0.01, longest_call=0.1),
    "tiny": _with_tool(TINY, max_completion_length=1024, mean_length=32, prompts_per_step=2),
    "0.5b": _with_tool(replace(LARGE, shape="0.5b"), max_completion_length=2048, mean_length=100),
}
"""Defaults by shape; every field can be changed on the command line. No turn should run into the limit."""


class Store:
    """An environment class as TRL takes it. Its tool waits as a search or a sandbox would, without computing."""

    seconds = (0.0, 0.0)
    """The shortest and the longest wait."""
    calls = 0
    """Those of all instances that have ended."""
    _lock = Lock()

    def reset(self, **row: Any) -> None:
        """Nothing to say first."""

    def count_stock(self, ticket: int) -> str:
        """Counts what is in the store.

        Args:
            ticket: Of the question.
        """
        time.sleep(random.Random(ticket).uniform(*Store.seconds))
        with Store._lock:
            Store.calls += 1
        return RESULT


def call_in_every_turn(tokenizer: PreTrainedTokenizerBase, turns: int) -> PreTrainedTokenizerBase:
    """The tokenizer, which now reads a call out of every turn but the last, whatever the policy said in it.

    Both sides parse turns by their tokenizer's ``parse_response``. A random model writes no calls, and one that was taught to
    would not write them on both sides alike: so lengths stay the model's, and the number of turns is the same for all.

    Args:
        tokenizer: Is changed.
        turns: Of a rollout.
    """
    result = array("q", tokenizer(" " + RESULT.split(" ", 1)[1], add_special_tokens=False)["input_ids"]).tobytes()

    def parse_response(ids: Sequence[int], prefix: Sequence[int] = (), tools: Any = None) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        if array("q", prefix).tobytes().count(result) < turns - 1:
            function = {"name": "count_stock", "arguments": {"ticket": hash(tuple(ids)) % 10**6}}
            message["tool_calls"] = [{"type": "function", "function": function}]
        return message

    tokenizer.response_template = {"defaults": {"role": "assistant"}}  # there is one: TRL adds none of its own
    tokenizer.parse_response = parse_response  # type: ignore[method-assign]
    return tokenizer
