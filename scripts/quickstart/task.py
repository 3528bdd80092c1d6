"""The quickstart's problems: additions and subtractions of two to four digits, and which of them are held out."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

HELD_OUT_SHARE = 10
"""One family of problems in this many is held out."""

MIN_DIGITS, MAX_DIGITS = 2, 4
"""Digits of the longer operand; the shorter one has as many, or up to one fewer."""


@dataclass(frozen=True)
class Problem:
    """``a op b`` with ``op`` ``+`` or ``-``; a minus problem never has a negative result."""

    a: int
    op: str
    b: int

    @property
    def prompt(self) -> str:
        """What the user says, as in ``47+85=``."""
        return f"{self.a}{self.op}{self.b}="

    @property
    def result(self) -> int:
        """The right answer."""
        return self.a + self.b if self.op == "+" else self.a - self.b

    @property
    def digits(self) -> int:
        """Digits of the longer operand, which is how many columns the working has."""
        return len(str(max(self.a, self.b)))

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


def sample_problem(rng: random.Random, held_out: bool) -> Problem:
    """Draw from one side of the split; lengths are uniform, and plus is as frequent as minus."""
    while True:
        digits = rng.randint(MIN_DIGITS, MAX_DIGITS)
        long = rng.randrange(10 ** (digits - 1), 10**digits)
        short = rng.randrange(1, 10 ** rng.randint(digits - 1, digits))
        if rng.random() < 0.5:
            problem = Problem(max(long, short), "-", min(long, short))
        else:
            problem = Problem(long, "+", short) if rng.random() < 0.5 else Problem(short, "+", long)
        if problem.held_out == held_out:
            return problem
