"""A toy tokenizer with a chat template that renders tools, and small environments: what tests of several turns share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from toy_models import build_model, build_tokenizer

from grpo_lightning.environments import ToolResult
from grpo_lightning.generation import Generator
from grpo_lightning.policy.policy import Policy
from grpo_lightning.policy.settings import PolicySettings
from grpo_lightning.types import Rollouts

TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% for call in message.get('tool_calls') or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ADD_SCHEMA = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}


def tool_tokenizer():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TOOL_TEMPLATE
    return tokenizer


def tool_policy(folder: Path) -> Policy:
    """A policy of that tokenizer, loaded; what a module would read is in the folder."""
    tokenizer = tool_tokenizer()
    model = build_model(tokenizer=tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    policy = Policy(PolicySettings(model_name_or_path=str(folder)), 0)
    policy.model = model
    return policy


@dataclass
class Factory:
    """Episodes by a function of the row."""

    make: Any
    at_once = None

    def __call__(self, row):
        return self.make(row)

    async def close(self):
        pass


@dataclass
class Adder:
    """A tool, no environment; each call may take a while."""

    seconds: float = 0.0
    tools: list[dict[str, Any]] = field(default_factory=lambda: [ADD_SCHEMA])
    done: bool = False
    rewards: list[float] = field(default_factory=list)
    environment: Any = None

    async def reset(self, row):
        return []

    async def call(self, name, arguments):
        await asyncio.sleep(self.seconds)
        if name != "add" or isinstance(arguments, str):
            return ToolResult(f"Error: {name}?", mistake=True)
        return ToolResult(str(arguments["a"] + arguments["b"]))

    async def respond(self, text):
        return None

    async def final_reward(self):
        return None

    async def close(self):
        pass


@dataclass
class Echo(Adder):
    """Answers every turn of text, for so many turns; a reward of 1, 2, 3, ... each."""

    turns: int = 2
    tools: list[dict[str, Any]] = field(default_factory=list)

    async def respond(self, text):
        await asyncio.sleep(self.seconds)
        self.rewards.append(len(self.rewards) + 1.0)
        self.done = len(self.rewards) == self.turns
        return [{"role": "user", "content": f"heard {len(text)}"}]

    async def final_reward(self):
        return 10.0


class Gate:
    """Stays shut until others have had so many turns. With a barrier between turns they would not have any before it opens."""

    def __init__(self, turns: int) -> None:
        self.left, self.is_open, self.gave_up = turns, threading.Event(), False

    def count(self) -> None:
        self.left -= 1
        if self.left <= 0:
            self.is_open.set()

    async def wait(self) -> None:
        self.gave_up |= not await asyncio.to_thread(self.is_open.wait, 120)


@dataclass
class Held(Echo):
    """Answers its first turn once the gate is open."""

    gate: Any = None

    async def respond(self, text):
        await self.gate.wait()
        return await super().respond(text)


@dataclass
class Opening(Echo):
    """Opens the gate a little with each of its turns."""

    gate: Any = None

    async def respond(self, text):
        self.gate.count()
        return await super().respond(text)


class Scripted(Generator):
    """Says what it was told to, token by token of a tokenizer: the n-th turn of every rollout is the n-th text."""

    def __init__(self, tokenizer, turns: Sequence[str]) -> None:
        self.tokenizer, self.turns = tokenizer, list(turns)
        self.asked: list[list[int]] = []
        self.seeds: list[int] = []

    def start(self, policy, tokenizer, model_name_or_path):
        pass

    def update_weights(self, policy):
        return {}

    def generate(self, prompt_ids, sampling, seeds, on_completed=None):
        opening = self.tokenizer("<|im_start|>assistant\n")["input_ids"]
        rows = []
        for ids, seed in zip(prompt_ids, seeds, strict=True):
            self.asked.append(list(ids))
            self.seeds.append(seed)
            turn = sum(ids[i : i + len(opening)] == opening for i in range(len(ids))) - 1
            rows.append(self.tokenizer(self.turns[turn])["input_ids"][: sampling.max_completion_length])
        ends = [row[-1] == self.tokenizer.eos_token_id for row in rows]
        return Rollouts(
            prompt_ids=torch.tensor([t for ids in prompt_ids for t in ids]),
            prompt_lengths=torch.tensor([len(ids) for ids in prompt_ids]),
            completion_ids=torch.tensor([t for row in rows for t in row]),
            completion_lengths=torch.tensor([len(row) for row in rows]),
            group=torch.arange(len(rows)),
            sampling_logprobs=torch.full((sum(map(len, rows)),), -0.5),
            truncated=torch.tensor([not end for end in ends]),
            completion_mask=torch.ones(sum(map(len, rows)), dtype=torch.bool),
        )
