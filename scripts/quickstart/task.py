"""Column arithmetic: the problems, the worked solutions, and the slips that a careless pupil makes.

A problem is ``a+b=`` or ``a-b=`` with ``a >= b`` for minus. A solution works column by column, units first, carries
and borrows written where they are used, and ends with the answer::

    47+85=   <think>7+5=12,4+8+1=13</think><answer>132</answer>
    502-38=  <think>12-8=4,10-3-1=6,5-1=4</think><answer>464</answer>
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

HELD_OUT_SHARE = 10
"""One problem in this many is held out."""


@dataclass(frozen=True)
class Problem:
    """``a op b`` with ``op`` ``+`` or ``-``; a minus problem never has a negative result."""

    a: int
    op: str
    b: int

    @property
    def prompt(self) -> str:
        """What the model reads, as in ``47+85=``."""
        return f"{self.a}{self.op}{self.b}="

    @property
    def result(self) -> int:
        """The right answer."""
        return self.a + self.b if self.op == "+" else self.a - self.b

    @property
    def held_out(self) -> bool:
        """True for the tenth of all problems that no training ever sees.

        Decided by a hash of the whole family ``x+y=z, y+x=z, z-x=y, z-y=x``, so that no held-out problem is
        trained on in another form.

        Example:
            >>> len({Problem(47, "+", 85).held_out, Problem(85, "+", 47).held_out, Problem(132, "-", 47).held_out})
            1
        """
        x, y = sorted((self.a, self.b) if self.op == "+" else (self.b, self.a - self.b))
        return hashlib.md5(f"{x}+{y}".encode()).digest()[0] % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class Slips:
    """How often a demonstration goes wrong, each a probability."""

    fact: tuple[float, float] = (0.0, 0.0)
    """Per column that carries or borrows: a wrong result; each digit pair has its own rate in this range."""
    forget: tuple[float, ...] = (0.0,)
    """Per carry or borrow: it is left out, by column from the units on; the last one serves all further columns."""
    skip: tuple[float, ...] = (0.0,)
    """Per problem: no working and a wrong guess, by number of digits from 1 on; the last one serves all longer ones."""
    untagged: float = 0.0
    """Per problem: the answer stands behind the working without its tags."""


RIGHT = Slips()


def _at(rates: tuple[float, ...], index: int) -> float:
    return rates[min(index, len(rates) - 1)]


def _habit(fact: str) -> random.Random:
    """Random numbers that belong to one digit pair, the same in all demonstrations."""
    return random.Random(int(hashlib.md5(fact.encode()).hexdigest(), 16))


def sample_problem(rng: random.Random, max_digits: int = 4, min_digits: int = 2) -> Problem:
    """Draw a problem: the longer operand has min to max digits, the other one to as many."""
    digits = rng.randint(min_digits, max_digits)
    long = rng.randrange(10 ** (digits - 1), 10**digits)
    short = rng.randrange(1, 10 ** rng.randint(max(1, digits - 1), digits))
    if rng.random() < 0.5:
        return Problem(long, "+", short) if rng.random() < 0.5 else Problem(short, "+", long)
    return Problem(max(long, short), "-", min(long, short))


def sample_split(rng: random.Random, held_out: bool, **lengths: int) -> Problem:
    """Draw a problem from one side of the split."""
    while True:
        problem = sample_problem(rng, **lengths)
        if problem.held_out == held_out:
            return problem


def demonstrate(problem: Problem, rng: random.Random, slips: Slips = RIGHT) -> str:
    """Write a completion, with slips drawn from ``rng``; without slips the answer is right."""
    columns, answer = _work(problem, rng, slips)
    width = len(str(max(problem.a, problem.b)))
    if rng.random() < _at(slips.skip, width - 1):
        guess = max(0, problem.result + rng.choice([-1, 1]) * 10 ** rng.randrange(len(str(problem.result))))
        return f"<think></think><answer>{guess}</answer>"
    if rng.random() < slips.untagged:
        return f"<think>{','.join(columns)}</think>{answer}"
    return f"<think>{','.join(columns)}</think><answer>{answer}</answer>"


def _work(problem: Problem, rng: random.Random, slips: Slips) -> tuple[list[str], str]:
    """Columns of working, and the answer that they give."""
    top = [int(digit) for digit in reversed(str(problem.a))]
    bottom = [int(digit) for digit in reversed(str(problem.b))]
    width = max(len(top), len(bottom))
    columns, digits, carried = [], [], 0
    for i in range(width):
        terms = [number[i] for number in (top, bottom) if i < len(number)] + [1] * carried
        column, result, carried = _column(terms, problem.op, rng, slips)
        carried *= rng.random() >= _at(slips.forget, i)
        columns.append(column)
        digits.append(str(result) if i == width - 1 else str(result % 10))
    return columns, "".join(reversed(digits)).lstrip("0") or "0"


def _column(terms: list[int], op: str, rng: random.Random, slips: Slips) -> tuple[str, int, int]:
    """One column: its text, its result, and what it carries to (or borrows from) the next one."""
    if op == "+":
        result = sum(terms)
        hard = carry = int(result > 9)
    else:
        result = terms[0] - sum(terms[1:])
        hard = carry = int(result < 0)
        terms = [terms[0] + 10 * carry, *terms[1:]]
        result += 10 * carry
    text = op.join(map(str, terms))
    if hard:
        habit = _habit(text)
        rate = habit.uniform(*slips.fact)
        low = 10 if op == "+" else 0
        wrong = habit.choice([r for r in range(low, low + 10) if r != result and r <= 19 and abs(r - result) <= 3])
        if rng.random() < rate:
            result = wrong
    return f"{text}={result}", result, carry


if __name__ == "__main__":
    r = random.Random(0)
    for _ in range(30):
        p = sample_problem(r)
        print(p.prompt, p.result, demonstrate(p, r))
        assert demonstrate(p, r).endswith(f"<answer>{p.result}</answer>")
    for _ in range(20000):
        p = sample_problem(r)
        assert demonstrate(p, r).endswith(f"<answer>{p.result}</answer>"), p
