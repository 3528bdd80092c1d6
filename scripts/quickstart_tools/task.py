"""The problems of the quickstart with tools: three numbers and two operations, and how a class of pupils goes about them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
HELD_OUT_SHARE = 10
"""One problem in this many is held out."""
GIVES_UP, GUESSES = 0.42, 0.28
"""Shares of the class that answer with the first result, and with one of the numbers. The others call both tools."""


@dataclass(frozen=True)
class Problem:
    """``a op b op c``, worked out from the left; no result on the way is negative."""

    a: int
    first: str
    b: int
    second: str
    c: int

    @property
    def prompt(self) -> str:
        """What the user says, as in ``47+85-12=``."""
        return f"{self.a}{self.first}{self.b}{self.second}{self.c}="

    @property
    def half(self) -> int:
        """The result of the first operation.

        Example:
            >>> Problem(47, "+", 85, "-", 12).half, Problem(47, "+", 85, "-", 12).result
            (132, 120)
        """
        return self.a + self.b if self.first == "+" else self.a - self.b

    @property
    def result(self) -> int:
        """The right answer."""
        return self.half + self.c if self.second == "+" else self.half - self.c

    @property
    def held_out(self) -> bool:
        """True for the tenth of all problems that no training ever sees, in any order of the first two numbers."""
        low, high = sorted((self.a, self.b))
        text = f"{low},{high},{self.c}"
        return hashlib.md5(text.encode()).digest()[0] % HELD_OUT_SHARE == 0


def sample_problem(rng: random.Random, held_out: bool) -> Problem:
    """Draw from one side of the split: numbers of one to three digits."""
    while True:
        a, b, c = (rng.randrange(1, 10 ** rng.randint(1, 3)) for _ in range(3))
        problem = Problem(a, rng.choice("+-"), b, rng.choice("+-"), c)
        if problem.held_out == held_out and problem.half >= 0 and problem.result >= 0:
            return problem


def turns(problem: Problem, rng: random.Random, is_class: bool) -> Iterator[dict[str, Any]]:
    """The turns of a pupil, each as a prompt with what comes before it and the turn as a completion."""
    lot = rng.random() if is_class else 1.0
    messages: list[Message] = [{"role": "user", "content": problem.prompt}]
    if lot < GUESSES:
        yield {"prompt": messages, "completion": [answer(rng.choice([problem.a, problem.b, problem.c]))]}
        return
    steps = [
        (problem.first, problem.a, problem.b, problem.half),
        (problem.second, problem.half, problem.c, problem.result),
    ]
    for op, left, right, result in steps[: 1 if lot < GUESSES + GIVES_UP else 2]:
        turn = call(op, left, right)
        yield {"prompt": list(messages), "completion": [turn]}
        messages += [turn, {"role": "tool", "name": "calculator", "content": str(result)}]
    yield {"prompt": list(messages), "completion": [answer(int(messages[-1]["content"]))]}


def call(op: str, left: int, right: int) -> Message:
    """A turn that calls a tool."""
    name = "add" if op == "+" else "subtract"
    function = {"name": name, "arguments": {"a": left, "b": right}}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def answer(number: int) -> Message:
    """The last turn."""
    return {"role": "assistant", "content": f"<answer>{number}</answer>"}
