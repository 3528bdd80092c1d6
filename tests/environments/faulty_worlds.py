"""Environment classes with the faults that ``env check`` finds."""

from __future__ import annotations

import itertools
import random
import threading
import time


class Untyped:
    def reset(self, **row):
        """Starts."""

    def move(self, where):
        """Moves."""


class Idle:
    def reset(self, **row):
        """Starts; nothing can be done here."""


class Seeding:
    def reset(self, seed: int = 0):
        """Seeds the generator of everybody."""
        random.seed(seed)
        return str(random.random())

    def step(self, text):
        """Answers."""


class Different:
    count = itertools.count()
    board = []  # noqa: RUF012  the fault

    def reset(self, **row):
        """Never the same."""
        return str(next(self.count))

    def step(self, text):
        """Answers."""


class Shared:
    """Keeps the state of one instance where all of them see it."""

    inside = 0
    lock = threading.Lock()

    def reset(self, **row):
        """Says how many are here."""
        with self.lock:
            type(self).inside += 1
        time.sleep(0.2)
        most = self.inside
        with self.lock:
            type(self).inside -= 1
        return str(most)

    def step(self, text):
        """Answers."""


class Finished:
    done = True

    def reset(self, **row):
        """Is over before it began."""

    def step(self, text):
        """Answers."""

    def get_reward(self):
        """No number."""
        return "much"


class Unknown:
    def reset(self, **row):
        """Starts."""

    def move(self, where: Place) -> str:  # noqa: F821  the fault
        """Moves.

        Args:
            where: To.
        """


class Settings:
    def __init__(self, size: int):
        """Needs a size."""

    def reset(self, **row):
        """Starts."""

    def step(self, text):
        """Answers."""


class Column:
    def reset(self, size: int, **row):
        """Needs a column, and takes all others."""

    def step(self, text):
        """Answers."""


class Wordy:
    def reset(self, **row):
        """Starts."""

    def step(self, text):
        """The first word's length, where there is one."""
        return str(len(text.split()[0]))


def broken():
    """Makes nothing."""
    raise OSError("no game server")
