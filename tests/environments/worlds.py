"""Tools and environments of the tests, as users write them."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


async def wait_and_add(a: int, b: int) -> int:
    """Adds two numbers, later.

    Args:
        a: The first.
        b: The second.
    """
    await asyncio.sleep(0.01)
    print("added")
    return a + b


RELEASE = threading.Event()
"""Ends the calls that hang."""


def hang() -> str:
    """Never comes back."""
    RELEASE.wait(60)
    return "late"


async def hang_politely() -> str:
    """Never comes back."""
    await asyncio.sleep(60)
    return "late"


def flood() -> str:
    """Says far too much."""
    return "x" * 100_000_000


def chatter() -> str:
    """Prints."""
    print("printed by a tool")
    return "done"


def fail() -> str:
    """Raises."""
    print("about to fail")
    raise KeyError("no such page")


def leave() -> str:
    """Exits."""
    raise SystemExit(3)


class Counter:
    """TRL's form: public methods are tools, ``get_reward`` scores; unchanged where TRL runs it."""

    def __init__(self) -> None:
        self.total = 0

    def reset(self, **row: object) -> str | None:
        """Starts at the row's number."""
        self.total = int(row.get("start", 0))
        if row.get("broken"):
            raise ConnectionError("the row's server is gone")
        return f"The count is {self.total}."

    def increase(self, by: int) -> str:
        """Adds to the count.

        Args:
            by: How much.
        """
        self.total += by
        return f"The count is {self.total}."

    def get_reward(self) -> float:
        """The count."""
        return float(self.total)


class Guess:
    """The form with turns of text: ``step`` answers them, and ends the game."""

    def reset(self, secret: int) -> None:
        """Takes the row's secret."""
        self.secret = secret

    def step(self, text: str) -> tuple[str, float, bool]:
        """Says whether the number is right."""
        is_right = text.strip() == str(self.secret)
        return ("right" if is_right else "wrong"), float(is_right), is_right


class GuessApart(Guess):
    """Two of them in processes of their own."""

    isolation = "process"
    concurrency = 2


class OneAtATime:
    """Not thread-safe, and says so."""

    concurrency = 1
    inside, most = 0, 0

    def reset(self) -> str:
        """Waits while it counts who else is here."""
        cls = type(self)
        cls.inside += 1
        cls.most = max(cls.most, cls.inside)
        time.sleep(0.01)
        cls.inside -= 1
        return "in"

    def hang(self) -> str:
        """Never comes back."""
        return hang()


class Apart:
    """Lives in a process of its own: seeds global state, dies, hangs."""

    isolation = "process"
    concurrency = 2

    def reset(self, seed: int = 0) -> str:
        """Seeds the global generator."""
        random.seed(seed)
        return f"process {os.getpid()}, drew {random.random()}"

    def die(self) -> str:
        """Kills its process."""
        os._exit(1)

    def hang(self) -> str:
        """Never comes back."""
        time.sleep(60)
        return "late"

    def fail(self) -> str:
        """Raises."""
        print("about to fail")
        raise KeyError("no such page")

    async def draw(self) -> float:
        """A random number."""
        return random.random()


async def block() -> str:
    """Holds the loop of all asynchronous calls."""
    RELEASE.wait(60)
    return "late"


class Unsendable:
    """Answers with something that cannot leave its process."""

    isolation = "process"

    def reset(self, **row):
        """Starts."""

    def step(self, text: str):
        """A message with a function in it."""
        return [{"role": "user", "content": "a", "then": lambda: None}]


class Alarmed:
    """Limits its own time as tools for TRL do, whose calls are in the main thread."""

    def reset(self, **row):
        """Starts."""

    def work(self) -> str:
        """Works for at most a tenth of a second."""

        def too_long(*of_signal):
            raise TimeoutError

        signal.signal(signal.SIGALRM, too_long)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            time.sleep(5)
        except TimeoutError:
            return "It took too long."
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return "It took 5 seconds."

    def wait(self) -> str:
        """Awaits something."""
        return asyncio.get_event_loop().run_until_complete(asyncio.sleep(0, "Awaited."))


class AlarmedApart(Alarmed):
    """The same in a process."""

    isolation = "process"


class Open:
    """Takes settings of any name, as wrappers of other libraries do."""

    def __init__(self, level: int = 0, **further: object) -> None:
        self.level, self.further = level, further

    def reset(self) -> str:
        """Starts."""
        return "go"


class Library:
    """Holds tools as attributes, and gives them to environments."""

    def __init__(self, shift: int = 0) -> None:
        self.shift = shift

    def look_up(self, word: str) -> int:
        """Length of a word.

        Args:
            word: To be looked up.
        """
        return len(word) + self.shift


class Desk:
    """Adds its tools in its constructor, as TRL lets classes do."""

    def __init__(self) -> None:
        self.library = Library(1)
        self.search = self.library.look_up
        self._close_by = self.library.look_up

    def reset(self) -> None:
        """Nothing to do."""


class DeskInAProcess(Desk):
    """The same, in a process of its own."""

    isolation = "process"


def make_desk() -> Desk:
    """What config names in place of the class."""
    return Desk()


registry = Library(100)
"""Some keep their tools in an object of a module."""
