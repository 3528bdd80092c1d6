"""Worked solutions as a class of pupils writes them: the method is right, some of the knowledge is not.

The working goes column by column, units first; a carry is a ``+1`` and a borrow a ``-1`` in the next column::

    47+85=   <think>7+5=12,4+8+1=13</think><answer>132</answer>
    502-38=  <think>12-8=4,10-3-1=6,5-1=4</think><answer>464</answer>

A model that imitates the class makes each mistake about as often as the class does. It also gives the right column
now and then, and reward for whole answers is what GRPO has to find out, column by column, which one that is.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from task import Problem


@dataclass(frozen=True)
class Slips:
    """How often demonstrations go wrong. Each slip is drawn anew, so one working can hold right and wrong columns."""

    fact: tuple[float, float] = (0.0, 0.0)
    """Chance of a wrong result in a column that carries or borrows, such as ``7+5``. Each such fact has a rate of
    its own in this range, and a wrong result of its own: above one half, the class is mostly wrong about it."""
    forget: tuple[float, ...] = (0.0,)
    """Chance of leaving a carry or borrow out, from the tens on; the last one serves all further columns."""
    skip: tuple[float, ...] = (0.0,)
    """Chance of no working and a wrong guess, from two-digit problems on; the last one serves all longer ones."""
    untagged: tuple[float, ...] = (0.0,)
    """Chance of an answer without its tags, from two-digit problems on; the last one serves all longer ones."""


RIGHT = Slips()
CLASS = Slips(fact=(0.3, 0.75), forget=(0.45, 0.6), skip=(0.05, 0.2, 0.35), untagged=(0.1, 0.2, 0.6))


def demonstrate(problem: Problem, rng: random.Random, slips: Slips = RIGHT) -> str:
    """Write a completion, with slips drawn from ``rng``.

    Example:
        >>> demonstrate(Problem(502, "-", 38), random.Random(0))
        '<think>12-8=4,10-3-1=6,5-1=4</think><answer>464</answer>'
    """
    if rng.random() < _rate(slips.skip, problem.digits - 2):
        place = 10 ** rng.randrange(len(str(problem.result)))
        return f"<think></think><answer>{abs(problem.result + rng.choice([-place, place]))}</answer>"
    columns, answer = _work(problem, rng, slips)
    if rng.random() < _rate(slips.untagged, problem.digits - 2):
        return f"<think>{','.join(columns)}</think>{answer}"
    return f"<think>{','.join(columns)}</think><answer>{answer}</answer>"


def _rate(rates: tuple[float, ...], index: int) -> float:
    """The rate at ``index``, or the last one beyond the end."""
    return rates[min(index, len(rates) - 1)]


def _work(problem: Problem, rng: random.Random, slips: Slips) -> tuple[list[str], str]:
    """The columns of working, and the answer that they give."""
    operands = [[int(digit) for digit in reversed(str(number))] for number in (problem.a, problem.b)]
    columns, digits, carry = [], [], 0
    for place in range(problem.digits):
        if carry and rng.random() < _rate(slips.forget, place - 1):
            carry = 0
        terms = [number[place] for number in operands if place < len(number)] + [1] * carry
        column, result, carry = _column(terms, problem.op, rng, slips)
        columns.append(column)
        digits.append(str(result) if place == problem.digits - 1 else str(result % 10))
    return columns, "".join(reversed(digits)).lstrip("0") or "0"


def _column(terms: list[int], op: str, rng: random.Random, slips: Slips) -> tuple[str, int, int]:
    """One column: its text, its result, and what it carries to (or borrows from) the next one."""
    result = sum(terms) if op == "+" else terms[0] - sum(terms[1:])
    carry = int(result > 9 or result < 0)
    if result < 0:
        terms, result = [terms[0] + 10, *terms[1:]], result + 10
    fact = op.join(map(str, terms))
    if carry:
        # Seeded by the fact: the class shares its rate and its wrong result.
        habit = random.Random(int(hashlib.md5(fact.encode()).hexdigest(), 16))
        rate = habit.uniform(*slips.fact)
        near = [wrong for wrong in range(result - 3, result + 4) if wrong // 10 == result // 10 and wrong != result]
        if rng.random() < rate:
            result = habit.choice(near)
    return f"{fact}={result}", result, carry
